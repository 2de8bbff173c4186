"""Weights out: one folder with every format, each checked against the model.

- `export`: write the folder, compare every format, record it in `model.json`
- `formats`: the table of formats, with the writer and the reader of each
- `onnx`: the ONNX graph of a ViT, node by node
- `source`: the forms of the model that formats write (folded, cast, int8)
- `storage`: storage dtypes, and what float16 cannot hold
- `comparison`: the difference between two programs' logits
- `folder`: replace a folder in one rename
"""
