"""One module a family of segmenters: what makes a mask of a click or a box.

A module is a `clickmask.plugins.Family`: `load(variant, host)`, and VARIANTS and `missing` if it needs
them. `host` is the `Host` of `clickmask.inference.catalogue`: weights, runtimes, threads. What `load`
gives is a `clickmask.types.Segmenter`. Modules that begin with `_` are shared.
"""
