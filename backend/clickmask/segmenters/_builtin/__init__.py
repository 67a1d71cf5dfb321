"""Parts of the built-in segmenter."""
