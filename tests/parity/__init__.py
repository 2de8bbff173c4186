"""Against PyTorch and timm; needs the extra `[parity]`."""
