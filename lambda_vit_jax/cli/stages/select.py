"""Stage `select`: choose the attention layers to remove."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.settings import Select
from lambda_vit_jax.cli.stages import held_out
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core import digests, files
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.schema import Object
from lambda_vit_jax.models import modes
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import processes
from lambda_vit_jax.selection import budget, criteria, nose, record
from lambda_vit_jax.selection.options import Progress, SearchOptions, canonical
from lambda_vit_jax.selection.probe import ProbeOptions, select_by_probe
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.selection.removal_curve import top1_over_removed
from lambda_vit_jax.selection.short_dilution import ShortDilution
from lambda_vit_jax.selection.trials import Trial


def select(run: Run) -> None:
  """Chooses the layers to remove; writes after every round."""
  settings = run.settings.select
  dense = run.load('pretrain')
  model = task.searched(dense)
  size = _budget(settings, dense)
  name = canonical(settings.criterion)
  if name == 'probe':
    chosen = _probe(run, dense, size)
  elif reads_images(settings):
    images = held_out.selection_batches(run, model, settings.num_images)
    chosen = _search(run, model, images, size)
  else:
    chosen = _search(run, model, (), size)
  chosen = dataclasses.replace(chosen, top1=_top1(run, model, chosen))
  run.write_json(stage_table.SELECTION, digests.seal(chosen.to_json()))
  if run.leader:
    for partial in stage_table.STAGES['select'].partial:
      run.path(partial).unlink(missing_ok=True)
  run.reporter.say(f'select: {_in_words(chosen, dense)}')


def reads_images(settings: Select) -> bool:
  """Returns whether the criterion looks at images."""
  name = canonical(settings.criterion).partition(':')[0]
  return name in (*criteria.NEEDS_IMAGES, 'probe')


def _in_words(chosen: Selection, dense: Model) -> str:
  """Names every layer that is gone, and which ones were gone before."""
  text = f'attention removed from {list(chosen.removed)}'
  if chosen.removed_before:
    text += (
      f'; gone before: {list(chosen.removed_before)}; in all '
      f'{list(chosen.all_removed)} of {dense.depth} blocks'
    )
  if dense.kept_blocks:
    text += (
      f'; whole blocks were dropped before: blocks 0 to {dense.depth - 1} are '
      f'those that were called {list(dense.kept_blocks)}'
    )
  return text


def _budget(settings: Select, dense: Model) -> dict[str, Any]:
  """Returns the budget as a keyword of `SearchOptions`."""
  speedup = settings.target_speedup
  if speedup is not None and settings.criterion != 'given':
    # Of the whole network: a search does not see a decoder.
    number = budget.resolve_num_layers(dense, target_speedup=speedup)
    return {'num_layers': number}
  return settings.budget


def _search(
  run: Run,
  model: Model,
  batches: Iterable[dict[str, np.ndarray]],
  size: Mapping[str, Any],
) -> Selection:
  """Runs NOSE or a static criterion; resumes after the last finished round."""
  settings = run.settings.select
  found = run.read_json(stage_table.PARTIAL_SELECTION)
  where = str(run.path(stage_table.PARTIAL_SELECTION))
  begun = None if found is None else Selection.from_json(found, where)
  with run.reporter.bar('select', 100) as bar:

    def show(state: Progress) -> None:
      share = state.images_done / max(state.images, 1)
      rounds = (state.round_index + share) / max(state.num_rounds, 1)
      bar.update(round(100 * rounds), f'% {state.candidates} candidates left')

    options = SearchOptions(
      criterion=settings.criterion,
      target=settings.target,
      sign=settings.sign,
      trial=settings.trial,
      inputs=run.settings.linearize.inputs,
      layers=settings.layers,
      memory_gib=run.memory_gib,
      seed=run.settings.seed,
      **size,
    )
    return nose.select(
      model,
      batches,
      options,
      mesh=run.mesh,
      resume=begun,
      on_round=lambda found: run.write_json(
        stage_table.PARTIAL_SELECTION, found.to_json()
      ),
      on_progress=show,
      warn=run.reporter.warn,
    )


def _top1(run: Run, model: Model, chosen: Selection) -> tuple[float, ...]:
  """Accuracy over the layers left out, or () where there is none to tell.

  Maps in place of layers would have to be fitted anew for every number of them,
  and a criterion that reads no image stays as quick as it is.
  """
  settings = run.settings.select
  stepwise = chosen.rounds and chosen.trial == 'skip'
  if run.settings.segments or not (stepwise and reads_images(settings)):
    return ()
  batches = held_out.selection_batches(run, model, settings.num_images)
  images = read_images(batches, model, run.mesh)
  return top1_over_removed(model, images, chosen.order, run.memory_gib)


def _probe(run: Run, model: Model, size: Mapping[str, Any]) -> Selection:
  """Rates every static criterion's set by short dilutions; resumable."""
  settings = run.settings.dilute
  # With labels; read by every criterion that proposes a set.
  limit = run.settings.select.num_images
  batches = list(held_out.held_out_batches(run, model, limit))
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


_LAYERS = Object({'removed': record.SCHEMA.needed['removed']})


def removed_layers(run: Run, depth: int) -> tuple[int, ...]:
  """Returns the layers of `selection.json`, checked.

  Raises:
    CheckpointError: no usable selection.
  """
  path = run.path(stage_table.SELECTION)

  def read() -> dict[str, Any]:
    if not path.exists():
      raise CheckpointError(
        f'{path}: no such file; run the stage `select` first'
      )
    # The rest of the file may be missing: layers are also given by hand.
    return files.read_json(path, _LAYERS)

  found = processes.from_leader(read)
  digests.check_seal(
    found,
    str(path),
    f'delete its key {digests.KEY} to use it as it is now, or the file to have '
    'the stage `select` run again',
  )
  return modes.check_layers(found['removed'], depth)
