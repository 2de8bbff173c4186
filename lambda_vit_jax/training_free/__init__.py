"""Replace, drop or correct layers in closed form, without training.

- `least_squares`: ridge regression from streamed sums of products
- `cross_validation`: the same sums per fold of the images, for the ridge
- `linear_maps`: affine maps instead of attention layers: `linearize`
- `map_fitter`: the pass over the network that fits these maps
- `stand_in`: from a network to what a closed form made of it, as a plan
- `stream_pair`: the streams of the network that is fitted and of its reference
- `map_design`: inputs of a map as columns of the regression
- `input_choice`: which inputs pay for their cost: `inputs="auto"`
- `token_mixing`: fixed matrices over tokens, for the input `mixing`
- `paired`: a modified model and its dense original, side by side
- `norm_recentring`: recalibrate LayerNorm scale and bias: `recentre`
- `mlp_refit`: correct MLPs towards the dense model: `refit`
- `neurons`: fewer neurons, which make up for the others: `narrow`
- `polish`: some hundred steps of Adam after the closed forms
- `views`: random crops of images that are in memory, for these steps
- `dilute`: train into the result of a closed form, by λ: `dilute`
- `block_spans`: which consecutive blocks to drop: `choose_blocks`
"""
