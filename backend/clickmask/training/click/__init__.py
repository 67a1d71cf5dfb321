"""The built-in segmenter's promptable network, and how it is trained.

`network` is the model, `prompts` simulates an annotator, `pool` reads photographs and masks, `crops`
makes training examples of them and of drawn shapes, `fit` trains on these, `export` writes the two
ONNX files that are served and reads them back. `clickmask train-builtin` runs all of it.
"""
