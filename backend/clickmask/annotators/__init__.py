"""One module per family of annotators, which label a whole image without a prompt.

A module is an `AnnotatorFamily` of `clickmask.annotators._catalogue`: `load(variant, host)` gives a
`clickmask.types.Annotator`, `labels(variant, host)` its labels. `missing`, VARIANTS and `variants(host)`
are optional; see `clickmask.plugins.Family`.
"""
