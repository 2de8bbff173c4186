"""Accuracy, IoU, sliding windows and speed."""
