"""Measure the activations of a network: entropy, moments, spectrum.

- `entropy`: the formula H = Σ log σ + const, and transfer entropy
- `moments`: streaming mean and variance over batches and devices
- `twofloat`: two-float sums, in which the moments are kept
- `images`: `read_images`: batches of any kind to fixed micro-batches
- `memory`: the size of a micro-batch from the device's memory
- `blocks`: `BlockRunner`: run a network block by block
- `profile`: entropy and cosine of every layer: `entropy_profile`
- `spectrum`: spatial frequencies after every block: `spectrum`
"""
