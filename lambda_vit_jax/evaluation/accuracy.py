"""Exact top-1, top-5 and loss over every image of a split."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation.changes import Answers
from lambda_vit_jax.evaluation.counts import evaluation_counts, predicted_counts
from lambda_vit_jax.models.build import apply_module, for_backend
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation, processes, sharding

Predict = Callable[[Array], Array]
"""Normalised NHWC images to logits."""

Counter = Callable[[Array, Array, Array], dict[str, Array]]
"""Logits, labels and mask of a batch to sums, see `counts`."""


def counts_of(
  counter: Counter,
  module: ViT,
  params: Params,
  batch: Mapping[str, Array],
  dilution_factor: Array | None = None,
) -> dict[str, Array]:
  """Applies `counter` to the logits of a batch; traceable."""
  logits, _ = apply_module(
    module,
    params,
    batch['image'],
    dilution_factor=dilution_factor,
    capture=False,
  )
  return counter(logits, batch['label'], batch['mask'])


@compilation.jit(static_argnames=('counter', 'module', 'everywhere'))
def counts_everywhere(
  counter: Counter,
  module: ViT,
  params: Params,
  batch: Mapping[str, Array],
  dilution_factor: Array | None,
  everywhere: NamedSharding,
) -> dict[str, Array]:
  """`counts_of` over a mesh, with the sums replicated to its devices."""
  counts = counts_of(counter, module, params, batch, dilution_factor)
  return jax.lax.with_sharding_constraint(counts, everywhere)


_counts_of_logits = jax.jit(evaluation_counts)


def summarize(counts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  """Adds up per-batch counts in float64.

  Returns:
    `top1`, `top5` (fractions), `loss` (nats per image) and `num_images`.
  """
  totals = _totals(counts)
  images = max(totals['images'], 1)
  return {
    'top1': totals['correct1'] / images,
    'top5': totals['correct5'] / images,
    'loss': totals['loss'] / images,
    'num_images': totals['images'],
  }


def _totals(counts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  totals = {'correct1': 0, 'correct5': 0, 'loss': 0.0, 'images': 0}
  for row in counts:
    for name, value in jax.device_get(row).items():
      totals[name] += float(value) if name == 'loss' else int(value)
  return totals


def evaluate_model(
  model: Model,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  advance: Callable[[int], None] = lambda images: None,
  answers: Answers | None = None,
) -> dict[str, float]:
  """Accuracy of a model over padded, masked batches.

  Args:
    model: its parameters are copied to every device.
    batches: `image`, `label` and `mask` of equal shapes; see
      `data.pipeline.eval_batches`.
    mesh: the batch is split over it.
    advance: called with the number of images done.
    answers: takes the class that the model gives each image.

  Returns:
    See `summarize`.
  """
  params = sharding.replicate(model.params, mesh)
  return evaluate_params(
    for_backend(model.module),
    params,
    batches,
    mesh,
    advance=advance,
    answers=answers,
  )


def evaluate_params(
  module: ViT,
  params: Params,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  dilution_factor: Array | None = None,
  advance: Callable[[int], None] = lambda images: None,
  answers: Answers | None = None,
) -> dict[str, float]:
  """`evaluate_model` for parameters already on the mesh, in any sharding.

  Args:
    module: the network.
    params: its parameters.
    batches: in a job of several processes, this process's part of each.
    mesh: the batch is split over it.
    dilution_factor: `[depth]` λ, for a module with blocks in mode `diluted`.
    advance: called with the number of images done, of all processes.
    answers: as in `evaluate_model`; of all processes.
  """
  everywhere = sharding.replicated(mesh)
  counter = evaluation_counts if answers is None else predicted_counts
  rows = []
  for batch in batches:
    placed = sharding.put_batch(batch, mesh)
    counts = counts_everywhere(
      counter, module, params, placed, dilution_factor, everywhere
    )
    if answers is not None:
      answers.add(counts.pop('predicted'), counts.pop('label'))
    rows.append(counts)
    advance(len(placed['label']))
  return summarize(rows)


def evaluate_program(
  predict: Predict,
  batches: Iterable[dict[str, np.ndarray]],
  advance: Callable[[int], None] = lambda images: None,
  alone: bool = False,
) -> dict[str, float]:
  """`evaluate_model` for any function to logits, such as an exported program.

  Each process of a job runs it on its own part of the batches; their counts
  are added up. With `alone`, one process does all of it.
  """
  rows = []
  for batch in batches:
    logits = np.asarray(predict(batch['image']), np.float32)
    rows.append(_counts_of_logits(logits, batch['label'], batch['mask']))
    advance(len(batch['label']) * jax.process_count())
  return summarize(rows if alone else processes.gather(_totals(rows)))
