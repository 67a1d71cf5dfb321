"""Parts of the SAM segmenters."""
