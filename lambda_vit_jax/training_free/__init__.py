"""Replace, drop or correct layers by least squares instead of training.

- `least_squares`: ridge regression from streamed sums of products
- `folds`: the same sums per fold of the images, to choose the ridge
- `linear_maps`: affine maps instead of attention layers: `linearize`
- `map_fitter`: the pass over the network that fits these maps
- `paired`: a modified model and its dense original, side by side
- `norm_recentring`: recalibrate LayerNorm scale and bias: `recentre`
- `mlp_refit`: correct MLPs towards the dense model: `refit`
- `block_spans`: which consecutive blocks to drop: `choose_blocks`
"""
