"""Data sets, image transforms and batches; no TensorFlow, no models."""
