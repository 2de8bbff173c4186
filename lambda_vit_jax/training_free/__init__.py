"""Least squares instead of training."""
