"""The training loop: phases, checkpoints, metrics, interruption.

`fit` knows no config and no command line: it is given a `Job` and returns the
final parameters. What a job trains on, and what for, is the stages' business.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lambda_vit_jax import checkpoint, interrupt, sharding, surgery
from lambda_vit_jax.errors import LambdaVitError
from lambda_vit_jax.metrics import MetricsWriter
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.progress import Reporter
from lambda_vit_jax.train_step import (
  Dilution,
  LossSettings,
  TrainState,
  init_state,
  make_train_step,
  prune_state,
)
from lambda_vit_jax.typing import Array, Params


class DivergedError(LambdaVitError):
  """The loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Phase:
  """A stretch of steps under one compiled program.

  Attributes:
    module: the network of this phase.
    until: the step at which it ends.
    removed: layers whose attention is dropped from the state when it begins.
  """

  module: ViT
  until: int
  removed: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
  """What one training stage does.

  Attributes:
    stage: name, for folders and metrics.
    phases: in order; the last one's `until` is the total number of steps.
    optimizer: an optax transformation.
    learning_rate: by step, for the metrics.
    loss: terms of the loss.
    dilution: λ over steps.
    seed: of the random choices in the step.
    steps_per_epoch: for the metrics.
    make_batches: from a first step to an endless iterator of this process's
      batches.
    teacher: module and parameters for distillation, or None.
    batch_size: images of one step over all processes.
    description: of the model, for the checkpoint (`description.describe`).
  """

  stage: str
  phases: Sequence[Phase]
  optimizer: optax.GradientTransformation
  learning_rate: Callable[[int], Any]
  loss: LossSettings
  dilution: Dilution
  seed: int
  steps_per_epoch: int
  make_batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
  teacher: tuple[ViT, Params] | None
  batch_size: int
  description: dict[str, Any]
  log_every: int
  checkpoint_every: int

  @property
  def total_steps(self) -> int:
    """Steps of all phases."""
    return self.phases[-1].until

  def phase_at(self, step: int) -> int:
    """Index of the phase whose program runs at `step`."""
    for index, phase in enumerate(self.phases):
      if step < phase.until:
        return index
    return len(self.phases) - 1

  def meta_at(self, step: int) -> dict[str, Any]:
    """The checkpoint's JSON at `step`."""
    module = self.phases[self.phase_at(step)].module
    modes = {
      'attention_modes': list(module.attention_modes),
      'removed_layers': list(surgery.removed_layers(module.attention_modes)),
    }
    return {
      'stage': self.stage,
      'step': step,
      'total_steps': self.total_steps,
      'model': self.description | modes,
      'has_ema': bool(self.loss.ema_decay),
      'data': {'seed': self.seed, 'next_step': step},
    }


def fit(
  job: Job,
  params: Callable[[], Params],
  checkpointer: checkpoint.Checkpointer,
  mesh: Mesh,
  metrics: MetricsWriter,
  reporter: Reporter,
) -> Params:
  """Trains from the newest checkpoint, or from `params()`, to the end.

  The parameters after k steps depend on the job alone, not on how often it
  was interrupted: batches and random keys are functions of the seed and the
  step, and the phase is a function of the step.

  Returns:
    The final parameters (the average where there is one).

  Raises:
    DivergedError: the loss is not finite; names the step.
    StoppedError: after SIGTERM or Ctrl-C, with everything saved.
  """
  state = _restore_or_init(job, params, checkpointer, mesh, reporter)
  step = int(state.step)
  metrics.rewind(job.stage, step)
  if step < job.total_steps:
    with (
      interrupt.stop_flag() as stop,
      reporter.bar(job.stage, job.total_steps) as bar,
    ):
      log = _Log(job, metrics, step)
      for phase_index in range(job.phase_at(step), len(job.phases)):
        state = _run_phase(
          job, phase_index, state, checkpointer, mesh, log, bar, stop
        )
  if checkpointer.latest_step() != job.total_steps:
    _save(job, checkpointer, job.total_steps, state)
  checkpointer.wait()
  return state.params if state.ema is None else state.ema


def _run_phase(
  job: Job,
  phase_index: int,
  state: TrainState,
  checkpointer: checkpoint.Checkpointer,
  mesh: Mesh,
  log: '_Log',
  bar: Any,
  stop: interrupt.StopFlag,
) -> TrainState:
  phase = job.phases[phase_index]
  step = int(state.step)
  if step >= phase.until:
    return state
  train_step = make_train_step(
    phase.module,
    job.optimizer,
    job.loss,
    job.dilution,
    job.seed,
    mesh,
    sharding.tree_shardings(state, mesh),
    teacher=None if job.teacher is None else job.teacher[0],
  )
  teacher_params = None
  if job.teacher is not None:
    teacher_params = jax.device_put(job.teacher[1], sharding.replicated(mesh))
  batches = job.make_batches(step)
  while step < phase.until:
    batch = sharding.put_batch(next(batches), mesh)
    state, values = train_step(state, batch, teacher_params)
    step += 1
    log.add(values)
    last = step == phase.until
    if last and phase_index + 1 < len(job.phases):
      state = prune_state(state, job.phases[phase_index + 1].removed)
    due = step % job.checkpoint_every == 0 or last
    if step % job.log_every == 0 or due or stop.signum:
      bar.update(step, log.flush(step))
    if due or stop.signum:
      _save(job, checkpointer, step, state)
    if stop.signum:
      checkpointer.wait()
      raise interrupt.StoppedError(
        stop.signum,
        f'{job.stage}: interrupted at step {step} of {job.total_steps}; '
        'saved, run the same command again to continue',
      )
  return state


def _restore_or_init(
  job: Job,
  params: Callable[[], Params],
  checkpointer: checkpoint.Checkpointer,
  mesh: Mesh,
  reporter: Reporter,
) -> TrainState:
  """The newest checkpoint on this mesh, else a state at step 0."""

  def fresh(values: Params) -> TrainState:
    return init_state(values, job.optimizer, bool(job.loss.ema_decay))

  step = checkpointer.latest_step()
  if step is None:
    state = fresh(params())
    for phase in job.phases[: job.phase_at(0) + 1]:
      state = prune_state(state, phase.removed)
    shardings = sharding.tree_shardings(state, mesh)
    # A copy: the step donates its state, and the caller keeps its arrays.
    return jax.device_put(jax.tree.map(np.array, state), shardings)
  reporter.say(f'{job.stage}: continuing at step {step} of {job.total_steps}')
  abstract = jax.eval_shape(lambda: fresh(params()))
  for phase in job.phases[: job.phase_at(step) + 1]:
    abstract = prune_state(abstract, phase.removed)
  shardings = sharding.tree_shardings(abstract, mesh)
  abstract = checkpoint.abstract_like(abstract, shardings)
  return TrainState(**_flat(checkpointer.restore(step, _items(abstract))))


def _save(
  job: Job,
  checkpointer: checkpoint.Checkpointer,
  step: int,
  state: TrainState,
) -> None:
  checkpointer.save(step, _items(state), job.meta_at(step))


def _items(state: TrainState) -> dict[str, Any]:
  """A state as the items of a checkpoint."""
  items = {
    'params': state.params,
    'optimizer': {'step': state.step, 'opt_state': state.opt_state},
  }
  return items if state.ema is None else items | {'ema': state.ema}


def _flat(items: dict[str, Any]) -> dict[str, Any]:
  """Inverse of `_items`: the fields of a state."""
  return {
    'params': items['params'],
    'ema': items.get('ema'),
    **items['optimizer'],
  }


class _Log:
  """Collects the step's metrics on the device; fetches them when asked."""

  def __init__(self, job: Job, metrics: MetricsWriter, step: int):
    self._job = job
    self._metrics = metrics
    self._pending: list[dict[str, Array]] = []
    self._logged = step
    self._time = time.monotonic()

  def add(self, values: dict[str, Array]) -> None:
    self._pending.append(values)

  def flush(self, step: int) -> str:
    """Writes one line of means since the last; returns a short note."""
    rows = jax.device_get(self._pending)
    self._pending = []
    for offset, row in enumerate(rows):
      if not math.isfinite(row['loss']):
        bad = self._logged + offset
        raise DivergedError(
          f'{self._job.stage}: the loss is {row["loss"]} at step {bad}; the '
          'last checkpoint is good: lower the learning rate or set clip_norm'
        )
    if not rows:
      return ''
    now = time.monotonic()
    images = len(rows) * self._job.batch_size
    values = {
      'epoch': step / self._job.steps_per_epoch,
      'loss': float(np.mean([row['loss'] for row in rows])),
      'accuracy': float(np.mean([row['accuracy'] for row in rows])),
      'learning_rate': float(self._job.learning_rate(step - 1)),
      'lambda': float(rows[-1]['lambda']),
      'gradient_norm': float(np.mean([row['gradient_norm'] for row in rows])),
      'images_per_second': images / max(now - self._time, 1e-9),
    }
    self._metrics.write(self._job.stage, step, **values)
    self._logged, self._time = step, now
    return (
      f'loss {values["loss"]:.3f}  accuracy {values["accuracy"]:.3f}  '
      f'λ {values["lambda"]:.2f}  {values["images_per_second"]:.0f} images/s'
    )
