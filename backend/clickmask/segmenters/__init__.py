"""One module a family of segmenters.

A module offers `load(variant: str, **options) -> Segmenter`. Where a family has several
variants it lists them in `VARIANTS`; where it may lack something (weights, a package),
`missing(variant: str, **options) -> str` gives the sentence that says what, or "" if nothing is
missing. The options are `weights`, the `WeightsFolder` in which checkpoints lie.
"""
