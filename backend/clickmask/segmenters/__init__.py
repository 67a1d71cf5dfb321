"""One module per family of segmenters, which make a mask from a click or a box.

A module is a `clickmask.plugins.Family`: `load(variant, host)` gives a `clickmask.types.Segmenter`;
VARIANTS and `missing` are optional. `host` is the `Host` of `clickmask.inference.catalogue`: weights,
runtimes, threads. Modules that begin with `_` are shared.
"""
