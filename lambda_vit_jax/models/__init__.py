"""The Vision Transformer, its attention modes, and edits; only these files import Flax.

The network:

- `modes`: table of the six attention modes, with the scales r and a of each.
- `block`: one encoder block, `r·x + a·attention` and the MLP.
- `vit`: the whole network: patch and class tokens, blocks, readout.
- `attention`: multi-head self-attention.
- `map_inputs`: table of the inputs of the map in mode `linear`, and their cost.
- `linear_attention`: that map.
- `attention_pool`: a learnt query that gathers the patches.
- `rotary`: rotary positions of queries and keys.
- `relative_bias`: BEiT's bias of the scores by relative position.
- `gated_mlp`: SwiGLU.
- `layers`: norm, dense, MLP, LayerScale, patch embedding, drop path.
- `shortcuts`: the last block on the class token only; no factor 2.
- `decoders`: segmentation decoders.
- `token_merging`, `merge_schedule`: merge similar tokens; how many in each block.
- `quantization`: matrices of 8-bit integers.
- `resampling`: resizing grids of tokens and position embeddings.

Models:

- `variants`: table of known architectures by timm's names.
- `families`: its rows of SigLIP, DINOv3, EVA-02, CLIP and BEiT.
- `architecture`: `Variant`, one row of these tables.
- `pretrained_tags`: preprocessing of each of timm's weights of a variant.
- `build`: make, initialise and run the module of a variant.
- `model`: `Model`, a module with its parameters; `create_model`.
- `macs`: multiply-accumulates and parameters in closed form.
- `surgery`: prune and narrow parameter trees, fold the factor 2 into weights.
- `edits`: the same on a `Model`, and merge tokens, quantize, drop blocks.
- `adapt`: replace or remove the head, change the image size.
- `pieces`: run embedding, single blocks and readout by themselves.
"""
