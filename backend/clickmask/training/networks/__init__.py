"""One module a network that labels every pixel of an image.

A module offers `build(classes: int) -> torch.nn.Module`, the background being one of the classes:
(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W), for sides that are multiples of STRIDE.
"""
