"""Segmentation scores from one exact confusion matrix of integers."""

from typing import Any

import numpy as np

from lambda_vit_jax.typing import Array


def confusion_matrix(
  labels: Array, predicted: Array, num_classes: int
) -> np.ndarray:
  """Pixels by truth (rows) and prediction (columns), exact.

  Args:
    labels: ints of any shape; negative ones are left out.
    predicted: ints of the same shape, 0 to `num_classes - 1`.
    num_classes: side of the matrix.

  Returns:
    `[num_classes, num_classes]` int64.
  """
  labels = np.asarray(labels, np.int64).reshape(-1)
  cells = labels * num_classes + np.asarray(predicted, np.int64).reshape(-1)
  counts = np.bincount(cells[labels >= 0], minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def scores(matrix: np.ndarray) -> dict[str, Any]:
  """What a confusion matrix of integers says.

  Returns:
    `mean_iou`: mean over the classes that occur in truth or prediction, of
    the intersection over the union of their pixels; `pixel_accuracy`: share
    of the pixels that are right; `iou`: per class, None where it does not
    occur; `num_pixels`: all that counted. 0 where there is none.
  """
  right = np.diagonal(matrix)
  union = matrix.sum(axis=0) + matrix.sum(axis=1) - right
  found = union > 0
  iou = right[found] / union[found]
  per_class = np.full(len(matrix), np.nan)
  per_class[found] = iou
  total = int(matrix.sum())
  return {
    'mean_iou': float(iou.mean()) if found.any() else 0.0,
    'pixel_accuracy': int(right.sum()) / total if total else 0.0,
    'iou': [None if np.isnan(v) else float(v) for v in per_class],
    'num_pixels': total,
  }
