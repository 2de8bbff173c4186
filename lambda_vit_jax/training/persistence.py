"""Save and restore the training state; find the checkpoint to resume from."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training.job import Job
from lambda_vit_jax.training.step import TrainState, init_state

TRAINING_STAGES = ('pretrain', 'dilute', 'baseline')
"""Stages with checkpoints."""


def restore_or_init(
  job: Job,
  params: Callable[[], Params],
  checkpointer: orbax_store.Checkpointer,
  mesh: Mesh,
  reporter: Reporter,
) -> TrainState:
  """Restores the newest checkpoint of this run, else `job.start`, else step 0.

  The state is placed on `mesh`, whatever devices and processes wrote it.

  Args:
    job: the training job.
    params: returns the initial parameters.
    checkpointer: of this run.
    mesh: devices for the state.
    reporter: reports where training continues.

  Raises:
    CheckpointError: `job.start` is a checkpoint of a different job.
  """

  def fresh(values: Params, step: int) -> TrainState:
    state = init_state(values, job.optimizer, bool(job.loss.ema_decay))
    for phase in job.begun(step):
      state = phase.prune(state)
    return state

  def restored(source: orbax_store.Checkpointer, step: int) -> TrainState:
    abstract = jax.eval_shape(lambda: fresh(params(), step))
    shardings = sharding.tree_shardings(abstract, mesh)
    abstract = orbax_store.abstract_like(abstract, shardings)
    items = source.restore(step, _items(abstract))
    return TrainState(
      params=items['params'], ema=items.get('ema'), **items['optimizer']
    )

  step = checkpointer.latest_step()
  if step is not None:
    reporter.say(f'{job.stage}: continuing at step {step} of {job.total_steps}')
    return restored(checkpointer, step)
  if job.start is not None:
    with job.start.open() as source:
      _check_start(job, source, job.start.step)
      reporter.say(
        f'{job.stage}: continuing at step {job.start.step} of '
        f'{job.total_steps}, from {job.start.directory}'
      )
      return restored(source, job.start.step)
  state = fresh(params(), 0)
  # The step donates its state, so the caller's arrays are copied.
  copies = jax.tree.map(np.array, state)
  return jax.device_put(copies, sharding.tree_shardings(state, mesh))


def _check_start(job: Job, source: orbax_store.Checkpointer, step: int) -> None:
  """Raises CheckpointError if this job could not have written that step."""
  where = f'config.resume_from: {source.directory / str(step)}'
  if step > job.total_steps:
    raise CheckpointError(
      f'{where}: is past the {job.total_steps} steps of this stage; raise '
      'them, or take the weights alone with config.init'
    )
  found, expected = source.read_meta(step), job.meta_at(step)
  for key in ('variant', 'image_size', 'num_classes', 'attention_modes'):
    old, new = (meta['model'].get(key) for meta in (found, expected))
    if old != new:
      raise CheckpointError(
        f'{where}: has {key} {old}, this stage has {new}; give the checkpoint '
        'of the same job, or take the weights alone with config.init'
      )
  if found.get('has_ema') != expected['has_ema']:
    raise CheckpointError(
      f'{where}: only one of it and this stage keeps an average; set '
      'the key `ema` of its section as it was'
    )


def save(
  job: Job,
  checkpointer: orbax_store.Checkpointer,
  state: TrainState,
  metrics: dict[str, float] | None = None,
) -> None:
  """Starts saving a state in the background; see `Checkpointer.save`."""
  step = int(state.step)
  checkpointer.save(step, _items(state), job.meta_at(step), metrics)


def _items(state: TrainState) -> dict[str, Any]:
  """The items of a checkpoint of `state`."""
  items = {
    'params': state.params,
    'optimizer': {'step': state.step, 'opt_state': state.opt_state},
  }
  return items if state.ema is None else items | {'ema': state.ema}


def find(where: str, stage: str) -> orbax_store.Source | None:
  """Finds the checkpoint that `config.resume_from` names for a stage.

  Args:
    where: a workdir, or the folder of a stage, `WORKDIR/checkpoints/STAGE`, for
      the newest checkpoint; or a checkpoint in it, `…/STEP`. Empty for none.
    stage: one of `TRAINING_STAGES`.

  Returns:
    None if `where` has checkpoints of another stage only.

  Raises:
    CheckpointError: `where` has no checkpoint at all.
  """
  if not where:
    return None
  path = files.absolute(where)
  found = {name: _source(path, name) for name in TRAINING_STAGES}
  if not any(found.values()):
    raise CheckpointError(
      f'config.resume_from={where}: no checkpoint there; give a workdir, or '
      'WORKDIR/checkpoints/STAGE/STEP'
    )
  return found.get(stage)


def _source(path: epath.Path, stage: str) -> orbax_store.Source | None:
  """The checkpoint of a stage in `path`, if any."""
  directory = path / 'checkpoints' / stage
  # A workdir may have any name, even that of a stage or a number.
  if not directory.exists():
    if path.parts[-3:-1] == ('checkpoints', stage) and path.name.isdigit():
      found = orbax_store.Source(path.parent, int(path.name))
      return found if path.exists() else None
    if path.parts[-2:] == ('checkpoints', stage):
      directory = path
  newest = orbax_store.newest_step(directory)
  return None if newest is None else orbax_store.Source(directory, newest)
