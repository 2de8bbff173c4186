"""Dilution, the training step and loop, optimiser, losses, metrics."""
