"""IoU and pixel accuracy from an exact confusion matrix of integers."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lambda_vit_jax.core.typing import Array


def confusion_matrix(
  labels: Array, predicted: Array, num_classes: int
) -> np.ndarray:
  """Counts pixels by true class (rows) and predicted class (columns).

  Args:
    labels: ints of any shape; negative ones are left out.
    predicted: ints of the same shape, 0 to `num_classes - 1`.
    num_classes: rows and columns of the matrix.

  Returns:
    `[num_classes, num_classes]` int64.
  """
  labels = np.asarray(labels, np.int64).reshape(-1)
  cells = labels * num_classes + np.asarray(predicted, np.int64).reshape(-1)
  counts = np.bincount(cells[labels >= 0], minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def summarize(counts: Iterable[Mapping[str, Array]]) -> dict[str, float]:
  """Adds up the `counts.pixel_counts` of batches; all but the loss is exact.

  Returns:
    `loss` (nats per pixel), `accuracy` (of pixels), `mean_iou` and
    `num_images`.
  """
  matrix, loss, images = np.zeros((), np.int64), 0.0, 0
  for row in map(jax.device_get, counts):
    matrix = matrix + np.asarray(row['confusion'], np.int64)
    loss += float(row['loss'])
    images += int(row['images'])
  found = scores(np.atleast_2d(matrix))
  return {
    'loss': loss / max(found['num_pixels'], 1),
    'accuracy': found['pixel_accuracy'],
    'mean_iou': found['mean_iou'],
    'num_images': images,
  }


def areas(matrix: np.ndarray) -> np.ndarray:
  """Pixels in the intersection and in the union of every class.

  Args:
    matrix: `[classes, classes]` ints, true by predicted class.

  Returns:
    `[2, classes]` ints.
  """
  correct = np.diagonal(matrix)
  union = matrix.sum(axis=0) + matrix.sum(axis=1) - correct
  return np.stack([correct, union])


def mean_iou(areas: np.ndarray) -> np.ndarray:
  """Intersection over union, averaged over the classes that occur; else 0.

  Args:
    areas: `[..., 2, classes]`, see `areas`.
  """
  correct, union = areas[..., 0, :], areas[..., 1, :]
  number = np.count_nonzero(union, axis=-1)
  iou = correct / np.maximum(union, 1)
  return np.asarray(iou.sum(axis=-1) / np.maximum(number, 1))


def scores(matrix: np.ndarray) -> dict[str, Any]:
  """Scores of a confusion matrix of integers.

  Returns:
    `mean_iou`: intersection over union, averaged over the classes that occur
    among true or predicted classes; `pixel_accuracy`: fraction of pixels
    predicted correctly; `iou`: per class, None if it does not occur;
    `missing_classes`: those that no true pixel has; `num_pixels`: all pixels
    counted. Means over nothing are 0.
  """
  both = areas(matrix)
  correct, union = both
  total = int(matrix.sum())
  return {
    'mean_iou': float(mean_iou(both)),
    'pixel_accuracy': int(correct.sum()) / total if total else 0.0,
    'iou': [
      float(c / u) if u else None for c, u in zip(correct, union, strict=True)
    ],
    'missing_classes': np.flatnonzero(matrix.sum(axis=1) == 0).tolist(),
    'num_pixels': total,
  }
