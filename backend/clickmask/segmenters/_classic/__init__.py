"""Parts that the segmenters without a network share."""
