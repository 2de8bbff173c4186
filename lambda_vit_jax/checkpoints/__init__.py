"""Weights in: timm, Google, DeiT, the hub, Orbax and our exports."""
