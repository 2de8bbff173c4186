"""Accuracy and probable classes of a model in Python: `lv.evaluate`, `lv.predict`."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import (
  Batches,
  ImageSet,
  check_not_used_up,
  each_batch,
)
from lambda_vit_jax.analysis.memory import micro_batch_size
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import (
  DataError,
  ModelError,
  UsageError,
  not_finite,
  warn_user,
)
from lambda_vit_jax.core.images import check_classes
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.data.inputs import preprocess
from lambda_vit_jax.evaluation.changes import paired_difference
from lambda_vit_jax.evaluation.counts import image_scores
from lambda_vit_jax.models.build import apply_module, for_backend
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(Shown):
  """How well a model classifies some images.

  Attributes:
    top1: fraction of the images whose most probable class is theirs.
    top5: the same for the five most probable, or all of fewer classes.
    loss: mean cross-entropy, nats.
    correct: `[images]` bool, what `top1` is the mean of.
  """

  top1: float
  top5: float
  loss: float
  # Two results are equal if their figures are.
  correct: np.ndarray = dataclasses.field(compare=False)

  @property
  def num_images(self) -> int:
    """Number of images."""
    return len(self.correct)

  @check_arguments
  def minus(self, other: 'Evaluation') -> tuple[float, float]:
    """The difference of `top1`, and half the width of its 95% interval.

    The images are the same ones, so that only those count which one of the two
    models gets right: the interval of their paired differences.

    Raises:
      UsageError: `other` is of another number of images.
    """
    if self.num_images != other.num_images:
      raise UsageError(
        f'the evaluations are of {self.num_images} and {other.num_images} '
        'images; evaluate both models on the same ones'
      )
    return paired_difference(self.correct, other.correct)

  def table(self) -> Table:
    """One row per measure."""
    rows = [
      ('top-1', f'{self.top1:.2%}'),
      ('top-5', f'{self.top5:.2%}'),
      ('loss', f'{self.loss:.4f} nats'),
      ('images', f'{self.num_images:,}'),
    ]
    return Table('Evaluation', ('', ''), rows)


@compilation.jit(static_argnames=('module', 'placement'))
def _scores(
  module: ViT, params: Params, batch: dict[str, Array], *, placement: Any
) -> dict[str, Array]:
  logits, _ = apply_module(module, params, batch['image'], capture=False)
  found = image_scores(logits, batch['label']) | {'mask': batch['mask']}
  return jax.lax.with_sharding_constraint(found, placement.replicated)


@check_arguments
def evaluate(
  model: Model,
  batches: Batches,
  *,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Evaluation:
  """The accuracy of a model on labelled images.

  Args:
    model: with a head, in any mode but `diluted`.
    batches: an iterable of `(images, labels)` or of dicts with `image` and
      `label`, read one after the other; see `images.read_images`. In a job of
      several processes all have the same number of batches.
    memory_gib: working memory per device.
    mesh: devices that share the images.

  Returns:
    `top1`, `top5`, `loss`, and which images are right, so that
    `evaluate(pruned, b).minus(evaluate(dense, b))` has a paired interval.

  Raises:
    DataError: no image, images of another shape, labels that are missing or
      are no classes of the model.
    ModelError: a model without a head, one that segments, or logits that are
      not finite.
  """
  _check_head(model)
  if model.module.segmentation is not None:
    raise ModelError(
      'the model segments, and has no one class per image; the stage '
      '`evaluate` measures its IoU'
    )
  rows: dict[str, list[np.ndarray]] = {}
  params, odd = None, ''
  for index, (part, warning) in enumerate(each_batch(batches, model, mesh)):
    odd = odd or warning
    _check_labels(part, index, model)
    if params is None:
      params = part.placement.replicate(model.params)
    for scores in _batch_scores(model, params, part, memory_gib):
      for name, values in scores.items():
        rows.setdefault(name, []).append(values)
  if odd:
    # Once, not for every batch.
    warn_user(odd)
  if not rows:
    check_not_used_up(batches)
  if not rows or not sum(map(len, rows['loss'])):
    raise DataError('no batch holds an image to evaluate on; give at least one')
  top1, top5, loss = (
    np.concatenate(rows[name]) for name in ('correct1', 'correct5', 'loss')
  )
  if not np.isfinite(loss).all():
    raise not_finite('evaluate')
  return Evaluation(
    float(top1.mean()),
    float(top5.mean()),
    float(loss.astype(np.float64).mean()),
    top1,
  )


def _batch_scores(
  model: Model, params: Params, part: ImageSet, memory_gib: float | None
) -> Iterator[dict[str, np.ndarray]]:
  """Scores of the images of one batch, of every process."""
  module = for_backend(model.module)
  size = micro_batch_size(module, part, memory_gib)
  for batch in part.micro_batches(size):
    found = jax.device_get(
      _scores(module, params, batch, placement=part.placement)
    )
    keep = found.pop('mask')
    yield {name: values[keep] for name, values in found.items()}


def _check_head(model: Model) -> None:
  if not model.num_classes:
    raise ModelError(
      'the model has no head, and gives features instead of classes; load it '
      'with num_classes, or a file that has one'
    )


def _check_labels(part: ImageSet, index: int, model: Model) -> None:
  """Refuses labels that no class of the model has."""
  if part.labels is None:
    raise DataError(
      f'batch {index} has no labels; give a list of (images, labels) pairs, one '
      'class index per image'
    )
  labels = np.concatenate(part.labels)
  check_classes(labels, model.num_classes, f'batch {index} has labels')


@check_arguments
def predict(model: Model, images: Any, topk: int = 5) -> list[dict[str, float]]:
  """The most probable classes of images.

  Args:
    model: with a head.
    images: paths, Pillow images or arrays that are not normalised, one or
      several: what `lv.preprocess` takes.
    topk: how many classes.

  Returns:
    Per image at most `topk` of `{class name: probability}`, best first; of a
    model that segments the share of the pixels, those of a border included.

  Raises:
    DataError: not an image.
    ModelError: a model without a head, or logits that are not finite.
    UsageError: `topk` below 1.
  """
  _check_head(model)
  if topk < 1:
    raise UsageError(f'topk={topk}: must be at least 1')
  return top_classes(model, preprocess(images, model), topk=topk)


def top_classes(
  model: Model,
  images: np.ndarray,
  size: tuple[int, int] | None = None,
  topk: int = 5,
  program: Callable[[np.ndarray], Any] | None = None,
) -> list[dict[str, float]]:
  """The most probable classes of each image, best first.

  Args:
    model: with a head, or with a decoder: a class then has the share of the
      pixels where it is the most probable.
    images: `[batch, height, width, channels]` float32, normalised.
    size: (height, width) of the pixels that a decoder's shares are of, from
      the first; all of them by default.
    topk: how many classes.
    program: computes the logits in place of the model.

  Returns:
    Per image at most `topk` of `{class name: probability}`.

  Raises:
    ModelError: logits that are not finite.
  """
  logits = np.asarray((program or model)(images), np.float64)
  if not np.isfinite(logits).all():
    raise not_finite('predict')
  if model.module.segmentation is not None:
    height, width = size or images.shape[1:3]
    best = logits[:, :height, :width].argmax(axis=-1)
    found = best[..., None] == np.arange(logits.shape[-1])
    probabilities = found.mean(axis=(1, 2))
  else:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = weights / weights.sum(axis=-1, keepdims=True)
  names = model.class_names or tuple(map(str, range(model.num_classes)))
  order = np.argsort(-probabilities, axis=-1, kind='stable')[:, :topk]
  return [
    {names[k]: float(row[k]) for k in best}
    for row, best in zip(probabilities, order, strict=True)
  ]
