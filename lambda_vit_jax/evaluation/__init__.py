"""Accuracy, IoU, sliding windows and speed.

- `counts`: sum hits and losses of a batch on the device
- `changes`: the paired interval of two models, classes and images that change
- `scores`: accuracy and probable classes in Python: `evaluate`, `predict`
- `accuracy`: add them up over a split
- `confusion`: turn a confusion matrix into IoU
- `sliding_windows`: segment images of any size
- `timing`: time programs in turn, until a ratio is known
- `programs`: time programs that runtimes have opened, and check their logits
- `benchmark`: compare sizes and speed of models
"""
