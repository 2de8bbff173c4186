"""Weights in: timm, Google, DeiT, the hub, Orbax and our exports.

- `load`: `load_pretrained`, `load_export`, `load_stage`: find and load weights
- `third_party`: read a timm, DeiT or Google file into a `Model`
- `in_memory`: load a timm model or a state dict that is in memory
- `readers`: open `.safetensors`, `.npz` and `.pth` files safely
- `pickles`: read PyTorch's files without running anything in them
- `weight_file`: `WeightFile`, names and shapes of the arrays of an open file
- `weight_sets`: find the network's arrays: wrappers, prefixes, several sets
- `layouts`: `Layout`, which program's names a file has
- `layout_tables`: all layouts, as data
- `layout_names`: the names that each of them has
- `convert`: convert arrays by tables of names; the table of timm's
- `google_names`: the tables of Google's and big_vision's names
- `family_names`: rows of timm's table that only some families have
- `infer`: recognise the variant from the shapes of the arrays
- `config_files`: read the JSON files of timm, transformers and OpenCLIP
- `timm_config`: read and write timm's `config.json`
- `transformers_config`: read and write transformers' `config.json`
- `hub`: download from the Hugging Face hub, and upload to it
- `description`: a model in JSON, and back
- `orbax_store`: training checkpoints and `params/`, with Orbax
- `orbax_folder`: what Orbax logs and raises when it opens a folder
- `builtin/`: weights that come with the package
"""
