"""Exact accuracy over every image of a split."""

import functools
from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax import losses, sharding
from lambda_vit_jax.models.model import Model, apply_module
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.typing import Array, Params

Predict = Callable[[Array], Array]
"""Normalised NHWC images to logits."""


@functools.partial(jax.jit, static_argnames='module')
def _counts(
  module: ViT, params: Params, batch: dict[str, Array]
) -> dict[str, Array]:
  logits, _ = apply_module(module, params, batch['image'], capture=False)
  return losses.evaluation_counts(logits, batch['label'], batch['mask'])


_counts_of_logits = jax.jit(losses.evaluation_counts)


def summarize(counts: Iterable[dict[str, Array]]) -> dict[str, float]:
  """Adds per-batch counts up in float64.

  Returns:
    `top1`, `top5` (fractions), `loss` (nats per image) and `num_images`.
  """
  totals = {'correct1': 0, 'correct5': 0, 'loss': 0.0, 'images': 0}
  for row in counts:
    for name, value in jax.device_get(row).items():
      totals[name] += float(value) if name == 'loss' else int(value)
  images = max(totals['images'], 1)
  return {
    'top1': totals['correct1'] / images,
    'top5': totals['correct5'] / images,
    'loss': totals['loss'] / images,
    'num_images': totals['images'],
  }


def evaluate_model(
  model: Model,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  advance: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
  """Accuracy of a model over padded, masked batches.

  Args:
    model: its parameters are copied to every device.
    batches: `image`, `label` and `mask` of equal shapes; see
      `data.pipeline.eval_batches`.
    mesh: the batch is split over it.
    advance: called with the number of images done.

  Returns:
    See `summarize`.
  """
  params = jax.device_put(model.params, sharding.replicated(mesh))
  rows = []
  for batch in batches:
    rows.append(_counts(model.module, params, sharding.put_batch(batch, mesh)))
    advance(len(batch['label']))
  return summarize(rows)


def evaluate_program(
  predict: Predict,
  batches: Iterable[dict[str, np.ndarray]],
  advance: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
  """The same for an opaque program (an exported one) that returns logits."""
  rows = []
  for batch in batches:
    logits = np.asarray(predict(batch['image']), np.float32)
    rows.append(_counts_of_logits(logits, batch['label'], batch['mask']))
    advance(len(batch['label']))
  return summarize(rows)
