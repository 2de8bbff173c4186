"""Measure the activations of a network: moments, entropy, spectrum.

In reading order:

  entropy   the formula H = Σ log σ + const, and transfer entropy
  moments   streaming mean and variance over batches and devices
  twofloat  the two-float sums that moments are kept in
  images    `read_images`: batches of any kind to fixed micro-batches
  memory    the size of a micro-batch from the device's memory
  blocks    `BlockRunner`: a network run block by block
  profile   entropy and cosine of every layer: `entropy_profile`
  spectrum  spatial frequencies after every block: `spectrum`
"""
