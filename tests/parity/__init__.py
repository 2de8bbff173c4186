"""Comparison with PyTorch and timm; needs the extra `[parity]`."""
