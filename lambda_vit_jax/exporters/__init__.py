"""Weights out: one folder with every format, each checked against the model.

- `export`: write the folder in one step, with every format compared
- `publish`: `push_to_hub`, an export with its card on the Hugging Face hub
- `model_card`: the page of a model on the hub
- `replaced_folder`: write beside the folder that is replaced at the end
- `remote_folder`: its last step where folders cannot be renamed
- `formats`: the table of formats, with the writer and the reader of each
- `extras`: packages of the extras, imported when they are needed
- `runtimes`: open an export in each runtime
- `pytorch`: a loader for timm, which can be copied
- `openvino_ir`: OpenVINO's format, made from the ONNX graph
- `calibration`: int8 with calibrated activations, and what accuracy it costs
- `onnx`: the ONNX graph of a ViT, node by node
- `source`: the forms of the model that formats write (folded, cast, int8)
- `comparison`: the difference between two programs' logits
"""
