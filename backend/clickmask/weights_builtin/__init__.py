"""The weights of the built-in segmenter, its MODEL_CARD.md and the NOTICE of what it began with."""
