"""Weights in: timm, Google, DeiT, the hub, Orbax and our exports.

- `load`: `load_pretrained`, `load_export`, `load_stage`: find and load weights
- `third_party`: read a timm, DeiT or Google file into a `Model`
- `in_memory`: load a timm model or a state dict that is in memory
- `readers`: open `.safetensors`, `.npz` and `.pth` files safely
- `convert`: the tables of parameter names and layouts, timm's and Google's
- `infer`: recognise the variant from the shapes of the arrays
- `timm_config`: read and write timm's `config.json`
- `hub`: download from the Hugging Face hub
- `description`: a model in JSON, and back
- `orbax_store`: training checkpoints and `params/`, with Orbax
- `orbax_folder`: what Orbax logs and raises when it opens a folder
- `builtin/`: weights that come with the package
"""
