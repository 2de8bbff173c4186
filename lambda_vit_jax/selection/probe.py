"""`criterion=probe`: sets of layers chosen by what they are worth afterwards.

Every static criterion proposes its set; short dilutions rate them, with
successive halving (`lambda_vit_jax.selection.short_dilution`), by the loss on held-out images.
It costs some thousand training steps where the static criteria cost a few
forward passes.
"""

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import nose
from lambda_vit_jax.selection.budget import resolve_num_layers
from lambda_vit_jax.selection.nose import Batches
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.selection.short_dilution import (
  Rung,
  ShortDilution,
  successive_halving,
)
from lambda_vit_jax.selection.trials import Trial

PROPOSERS: Mapping[str, Mapping[str, Any]] = {
  'transfer_entropy': {},
  'transfer_entropy, absolute': {'sign': 'absolute'},
  'transfer_entropy of features': {'target': 'features'},
  'loss_increase': {},
  'cosine': {},
  'affine': {},
  'first': {},
  'last': {},
}
"""Name of a proposal to the options of `selection.select`."""


def proposals(
  model: Model, batches: Batches, num_layers: int, **options: Any
) -> dict[str, Trial]:
  """The set that each static criterion would remove.

  Args:
    model: see `selection.select`. Of one without classes `loss_increase` has
      nothing to say.
    batches: with labels, read once per criterion: a list, not an iterator.
    num_layers: of every set.
    **options: of every search (`memory_gib`, `mesh`, `seed`, `warn`).
  """
  found = {}
  for name, own in PROPOSERS.items():
    if name == 'loss_increase' and not model.num_classes:
      continue
    found[name] = nose.select(
      model,
      batches,
      criterion=name.split(',')[0].split(' ')[0],
      num_layers=num_layers,
      resamples=0,
      **options,
      **own,
    ).removed
  return found


def select_by_probe(
  model: Model,
  batches: Batches,
  short: ShortDilution,
  *,
  steps: int,
  num_layers: int | None = None,
  removal_ratio: float | None = None,
  target_speedup: float | None = None,
  done: Mapping[tuple[Trial, int], float] | None = None,
  on_score: Callable[[Trial, int, float], None] = lambda *_: None,
  on_rung: Callable[[Rung], None] = lambda rung: None,
  **options: Any,
) -> Selection:
  """The proposed set whose short dilution leaves the least held-out loss.

  Args:
    model: the shared start; of a network that segments its backbone.
    batches: held-out images with labels, for the proposals.
    short: trains and scores; its test batches are held-out images too.
    steps: of the first rung; every further one has twice as many.
    num_layers: budget, see `selection.select`; so are the next two.
    removal_ratio: see there.
    target_speedup: see there.
    done: losses by set and steps that an interrupted search has got already.
    on_score: called after every short dilution.
    on_rung: called after every rung.
    **options: see `proposals`.

  Returns:
    A `Selection` whose `set_scores` hold each set's loss on the longest rung
    that it reached, and which has no rounds.
  """
  number = resolve_num_layers(model, num_layers, removal_ratio, target_speedup)
  sets = proposals(model, batches, number, **options)
  known = dict(done or {})

  def loss(layers: Trial, length: int) -> float:
    if (layers, length) not in known:
      trained = short.train(layers, length)
      found = short.score(layers, trained)['loss']
      if not math.isfinite(found):
        # The last in every ranking, and a number that JSON has.
        text = f'the short dilution of {list(layers)} diverged'
        options.get('warn', warnings.warn)(text)
        found = sys.float_info.max
      known[layers, length] = found
      on_score(layers, length, known[layers, length])
    return known[layers, length]

  rungs = successive_halving(sets.values(), loss, steps, on_rung)
  best = rungs[-1].ranking[0]
  scores: dict[Trial, float] = {}
  for rung in rungs:
    scores |= rung.scores
  start = Selection(
    'probe', 'loss', 'signed', short.num_test_images, base_entropy=None
  )
  return dataclasses.replace(start, order=best, removed=best, set_scores=scores)
