"""One module a family of annotators: what labels a whole image without a prompt.

A module is an `AnnotatorFamily` of `clickmask.annotators._catalogue`: `load(variant, host)` and
`labels(variant, host)`, and `missing`, VARIANTS or `variants(host)` if it needs them; see
`clickmask.plugins.Family`. What `load` gives is a `clickmask.types.Annotator`.
"""
