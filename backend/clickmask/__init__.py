"""clickmask: clicks and boxes become masks, accepted labels become a dataset."""

__version__ = "0.1.0"
