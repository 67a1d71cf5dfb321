"""One module a family of segmenters.

A module offers `load(variant: str, **options) -> Segmenter`. Where a family has several
variants it lists them in `VARIANTS`; where it may lack something (weights, a package),
`missing(variant: str, **options) -> str` gives the sentence that says what, or "" if nothing is
missing. The options are `weights`, the `WeightsFolder` in which checkpoints lie.

Where embeddings are those of a SAM, so that its own decoder can read them wherever it runs, the
mapping `DECODERS` gives for each such variant that SAM's name, and the embedding is `SamFeatures`.
"""
