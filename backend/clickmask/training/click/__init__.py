"""The built-in segmenter's promptable network and its training, run by `clickmask train-builtin`.

`network` is the model, `prompts` simulates an annotator, `pool` reads photographs and masks, `crops` makes
training examples of these and of drawn shapes, `fit` trains, `export` writes and reads the two ONNX files.
"""
