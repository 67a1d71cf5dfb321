"""The built-in segmenter's promptable network and its training, run by `clickmask train-builtin`."""
