"""One module a family of segmenters; each offers `load(variant, **options) -> Segmenter`."""
