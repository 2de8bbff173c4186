"""What changes between two models: paired intervals, classes and images."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.evaluation import confusion

# Of a normal distribution within the 95% interval.
_DEVIATIONS = 1.96

COMPARED = ('dense', 'baseline')
"""Models that the pruned one is compared with, where they are evaluated."""

# Most classes and images that are listed, whatever the size of the test set.
MOST_CLASSES = 10
MOST_IMAGES = 12


@dataclasses.dataclass
class Answers:
  """The class that a model gives each image of a split.

  Attributes:
    batches: per batch the classes given and the labels, `[batch]` int32; the
      label of padding is -1. They may be on a device.
  """

  batches: list[tuple[Array, Array]] = dataclasses.field(default_factory=list)

  def add(self, predicted: Array, labels: Array) -> None:
    """Adds a batch, in the order of the images."""
    self.batches.append((predicted, labels))

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """Classes given and labels, `[images]`, with padding at its place."""
    pairs = jax.device_get(self.batches)
    predicted, labels = zip(*pairs, strict=True)
    return np.concatenate(predicted), np.concatenate(labels)


def paired_difference(
  correct: np.ndarray, other: np.ndarray
) -> tuple[float, float]:
  """The difference of two accuracies, and half the width of its 95% interval.

  The images are the same ones, so that only those count which one of the two
  models gets right.

  Args:
    correct: `[images]` bool, whether a model is right.
    other: the same of the model that it is compared with.
  """
  change = correct.astype(float) - other
  width = _DEVIATIONS * change.std() / math.sqrt(len(change))
  return float(change.mean()), float(width)


def iou_difference(areas: np.ndarray, other: np.ndarray) -> tuple[float, float]:
  """The difference of two mean IoUs, and half the width of its 95% interval.

  A mean IoU is a mean of ratios of sums over images, so its interval is that of a
  jackknife: from the differences δ_i without image i, of both models, the variance
  (n − 1) / n · Σ_i (δ_i − δ̄)². Where few images have a class it is too wide rather
  than too narrow.

  Args:
    areas: `[images, 2, classes]`, `confusion.areas` of a model on each image; two
      images or more.
    other: the same of the model that it is compared with.
  """
  without = confusion.mean_iou(areas.sum(axis=0) - areas)
  without -= confusion.mean_iou(other.sum(axis=0) - other)
  variance = (len(areas) - 1) * without.var()
  change = confusion.mean_iou(areas.sum(axis=0)) - confusion.mean_iou(
    other.sum(axis=0)
  )
  return float(change), float(_DEVIATIONS * math.sqrt(variance))


def describe(
  answers: Answers, others: Mapping[str, Answers], class_names: Sequence[str]
) -> dict[str, Any]:
  """Compares the answers of a model with those of others, for JSON.

  Args:
    answers: of the model.
    others: by name; the first is the one whose images are listed.
    class_names: by class.

  Returns:
    `difference`, per other model the difference of `top1` and half its 95%
    interval; `changed`: `gained` and `lost`, numbers of images; `classes`, at
    most `MOST_CLASSES` of the largest change; `images`, at most `MOST_IMAGES`
    that were taken for something else, those lost first.
  """
  predicted, labels = answers.arrays()
  there = labels >= 0
  if not there.any():
    return {}
  right = predicted == labels
  fields: dict[str, Any] = {'difference': {}}
  for name, other in others.items():
    was_right = other.arrays()[0] == labels
    fields['difference'][name] = list(
      paired_difference(right[there], was_right[there])
    )
  before, _ = next(iter(others.values())).arrays()
  lost = (before == labels) & ~right & there
  gained = right & (before != labels) & there
  fields['changed'] = {
    'gained': int(gained.sum()),
    'lost': int(lost.sum()),
    'classes': _classes(labels[there], lost[there], gained[there], class_names),
    'images': _images(predicted, before, labels, lost, class_names),
  }
  return fields


def _name(class_names: Sequence[str], index: int) -> str:
  """A head may have more classes than the data set."""
  return str(class_names[index] if index < len(class_names) else index)


def _classes(
  labels: np.ndarray,
  lost: np.ndarray,
  gained: np.ndarray,
  class_names: Sequence[str],
) -> list[dict[str, Any]]:
  """Classes with images lost or gained, those with most first."""
  number = int(labels.max()) + 1
  images, less, more = (
    np.bincount(labels[keep], minlength=number)
    for keep in (np.ones(len(labels), bool), lost, gained)
  )
  order = np.argsort(-(less + more), kind='stable')[:MOST_CLASSES]
  return [
    {
      'class': _name(class_names, k),
      'images': int(images[k]),
      'lost': int(less[k]),
      'gained': int(more[k]),
    }
    for k in order
    if less[k] + more[k]
  ]


def _images(
  predicted: np.ndarray,
  before: np.ndarray,
  labels: np.ndarray,
  lost: np.ndarray,
  class_names: Sequence[str],
) -> list[dict[str, Any]]:
  """Images that the two take for different classes, those lost first."""
  differ = (predicted != before) & (labels >= 0)
  order = [*np.flatnonzero(differ & lost), *np.flatnonzero(differ & ~lost)]
  return [
    {
      'index': int(k),
      'label': _name(class_names, labels[k]),
      'before': _name(class_names, before[k]),
      'after': _name(class_names, predicted[k]),
    }
    for k in order[:MOST_IMAGES]
  ]
