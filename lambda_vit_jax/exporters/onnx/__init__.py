"""A ViT as an ONNX graph, written node by node."""
