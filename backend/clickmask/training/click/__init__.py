"""The built-in segmenter's network: what it is, and how it is trained.

`network` is the model, `prompts` simulates an annotator, `pool` reads photographs and masks,
`crops` makes training examples of them, some drawn out of nothing, `fit` is the loop,
`export` writes the two ONNX files that are served. `clickmask train-builtin` runs all of it.
"""
