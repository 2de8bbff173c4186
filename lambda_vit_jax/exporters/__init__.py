"""Weights out: safetensors, StableHLO, ONNX."""
