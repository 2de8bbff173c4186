"""A ViT as an ONNX graph, written node by node.

- `vit`: the whole network, block by block
- `linear_maps`: the maps of mode `linear`
- `layers`: products, norms and slices by the paths of their parameters
- `token_merging`: bipartite matching and merging
- `decoders`: segmentation decoders
- `graph`: nodes and arrays in memory, and the file made from them
"""
