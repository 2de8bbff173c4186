"""`select` with `criterion=probe`: resumable after every short dilution."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.options import SearchOptions
from lambda_vit_jax.selection.probe import ProbeOptions, select_by_probe
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.selection.short_dilution import ShortDilution
from lambda_vit_jax.selection.trials import Trial


def search(
  run: Run,
  model: Model,
  batches: Sequence[Mapping[str, np.ndarray]],
  size: Mapping[str, Any],
) -> Selection:
  """Rates every static criterion's set by short dilutions.

  Args:
    run: its config's sections `dilute` and `select` say how.
    model: the dense start.
    batches: the held-out images and labels, for the proposals and the score.
    size: the budget, one of `selection.select`'s.
  """
  settings = run.settings.dilute
  peak = settings.peak_learning_rate(run.batch_size)
  short = ShortDilution(
    model,
    {**dataclasses.asdict(settings), 'learning_rate': peak},
    lambda: run.train_batches(model.preprocessing, 0),
    batches,
    run.mesh,
  )
  done: dict[str, float] = run.read_json(stage_table.PARTIAL_PROBE) or {}

  def keep(layers: Trial, length: int, loss: float) -> None:
    run.reporter.say(
      f'select: {list(layers)} after {length} steps: loss {loss:.4f}'
    )
    done[_key(layers, length)] = loss
    run.write_json(stage_table.PARTIAL_PROBE, done)

  return select_by_probe(
    task.searched(model),
    [task.for_search(run.settings, batch) for batch in batches],
    short,
    ProbeOptions(
      run.settings.select.probe_steps,
      SearchOptions(memory_gib=run.memory_gib, seed=run.settings.seed, **size),
    ),
    done={_parse(key): loss for key, loss in done.items()},
    on_score=keep,
    mesh=run.mesh,
    warn=run.reporter.warn,
  )


def _key(layers: Trial, steps: int) -> str:
  return f'{",".join(map(str, layers))}@{steps}'


def _parse(key: str) -> tuple[Trial, int]:
  layers, _, steps = key.partition('@')
  return tuple(int(layer) for layer in layers.split(',')), int(steps)
