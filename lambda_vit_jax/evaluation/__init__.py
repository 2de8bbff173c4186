"""Accuracy, IoU, sliding windows and speed.

In reading order: `counts` sums hits and losses of a batch on the device;
`accuracy` adds them up over a split; `confusion` turns a confusion matrix into
IoU; `sliding_windows` segments images of any size; `benchmark` times programs
in turn.
"""
