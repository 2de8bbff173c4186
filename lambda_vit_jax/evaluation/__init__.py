"""Accuracy, IoU, sliding windows and speed.

- `counts`: sum hits and losses of a batch on the device
- `accuracy`: add them up over a split
- `confusion`: turn a confusion matrix into IoU
- `sliding_windows`: segment images of any size
- `benchmark`: time programs in turn
"""
