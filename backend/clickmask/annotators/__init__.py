"""One module a family of annotators: what labels a whole image without a prompt.

A module offers `load(variant: str, **options) -> Annotator` and, touching no model,
`labels(variant: str, **options) -> tuple[str, ...]`. As for segmenters, variants are listed in
`VARIANTS`, or given by `variants(**options)` where they depend on what is there, and
`missing(variant: str, **options) -> str` says what cannot be done without. The options are
`segmenters`, the `Catalogue` of them, `embeddings`, the `EmbeddingCache` that clicks use too,
`models`, the `ProjectModels` that were trained here, or None, and `refiner`, the name of the segmenter
that is shown what these models find, or None.
"""
