"""The training loop: phases, logging, evaluation, checkpoints, interruption.

`fit` runs a `Job` and returns the final parameters. It knows no config and no
command line; the stages build the job.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.runtime import sharding, signals
from lambda_vit_jax.runtime.progress import Bar, Reporter
from lambda_vit_jax.training import dilution, persistence
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.metrics import MetricsWriter
from lambda_vit_jax.training.step import (
  TrainState,
  make_train_step,
  prune_state,
)

__all__ = ['DivergedError', 'Job', 'Phase', 'fit']


class DivergedError(LambdaVitError):
  """The loss or the gradient became NaN or infinite."""


def fit(
  job: Job,
  params: Callable[[], Params],
  checkpointer: orbax_store.Checkpointer,
  mesh: Mesh,
  metrics: MetricsWriter,
  reporter: Reporter,
) -> Params:
  """Trains from the newest checkpoint, or from `params()`, to the end.

  The parameters after k steps depend only on the job, not on interruptions:
  batches and random keys are functions of the seed and the step, and the phase
  is a function of the step.

  Args:
    job: what to do.
    params: returns the initial parameters; called if there is no checkpoint.
    checkpointer: of this stage.
    mesh: devices to train on.
    metrics: receives one line every `job.log_every` steps.
    reporter: shows progress.

  Returns:
    The final parameters; their moving average if the job keeps one.

  Raises:
    DivergedError: the loss or gradient is not finite; names the step.
    StoppedError: after SIGTERM or Ctrl-C, when everything is saved.
  """
  state = persistence.restore_or_init(job, params, checkpointer, mesh, reporter)
  step = int(state.step)
  metrics.rewind(job.stage, step)
  if step < job.total_steps:
    with (
      signals.stop_flag(job.stage) as stop,
      reporter.bar(job.stage, job.total_steps) as bar,
    ):
      loop = _Loop(job, checkpointer, mesh, _Log(job, metrics, step), bar, stop)
      try:
        for index in range(job.phase_at(step), len(job.phases)):
          state = loop.run_phase(index, state)
      except DivergedError:
        # A checkpoint still being written precedes the divergence.
        checkpointer.wait()
        raise
      finally:
        job.window.close()
      loop.end()
  if checkpointer.latest_step() != job.total_steps:
    persistence.save(job, checkpointer, state)
  checkpointer.wait()
  return state.params if state.ema is None else state.ema


class _Loop:
  """What the phases of one call of `fit` share."""

  def __init__(
    self,
    job: Job,
    checkpointer: orbax_store.Checkpointer,
    mesh: Mesh,
    log: '_Log',
    bar: Bar,
    stop: signals.StopFlag,
  ):
    self._job = job
    self._checkpointer = checkpointer
    self._mesh = mesh
    self._log = log
    self._bar = bar
    self._stop = stop

  def run_phase(self, index: int, state: TrainState) -> TrainState:
    """Trains to the end of a phase; returns the state of the next one."""
    job, phase = self._job, self._job.phases[index]
    step = int(state.step)
    if step >= phase.until:
      return state
    train_step = make_train_step(
      phase.module,
      job.optimizer,
      job.loss,
      job.dilution,
      job.seed,
      self._mesh,
      sharding.tree_shardings(state, self._mesh),
      teacher=None if job.teacher is None else job.teacher[0],
    )
    teacher_params = None
    if job.teacher is not None:
      teacher_params = sharding.replicate(job.teacher[1], self._mesh)
    batches = job.make_batches(step)
    while step < phase.until:
      job.window.before(step)
      batch = sharding.put_batch(next(batches), self._mesh)
      state, values = train_step(state, batch, teacher_params)
      step += 1
      job.window.after(step, values)
      self._log.add(values)
      if step == phase.until and index + 1 < len(job.phases):
        following = job.phases[index + 1]
        state = prune_state(state, following.removed, following.linear)
      self._after_step(step, state, last=step == phase.until)
    return state

  def _after_step(self, step: int, state: TrainState, last: bool) -> None:
    """Logs, evaluates, saves and stops if it is time to."""
    job = self._job
    # A signal during the last step is handled by `end`.
    signum = self._stop.reached(step) if step < job.total_steps else 0
    due = step % job.checkpoint_every == 0 or last or bool(signum)
    wanted = bool(job.eval_every) and (last or step % job.eval_every == 0)
    scores: dict[str, float] = {}
    # A signal asks to stop soon: skip the evaluation.
    if job.evaluate is not None and wanted and not signum:
      self._log.check()
      began = time.monotonic()
      scores = self._evaluate(step, state)
      self._log.exclude(time.monotonic() - began)
    if step % job.log_every == 0 or due or scores:
      self._bar.update(step, self._log.flush(step, scores))
    if due:
      with self._stop.saving():
        self._save(step, state, scores)
        if signum:
          self._checkpointer.wait()
    if signum:
      raise signals.StoppedError(
        signum,
        f'{job.stage}: interrupted at step {step} of {job.total_steps}; '
        'saved, run the same command again to continue',
      )

  def end(self) -> None:
    """Stops after the last step if a signal came during it."""
    with self._stop.saving():
      self._checkpointer.wait()
    signum = self._stop.finish()
    if signum:
      raise signals.StoppedError(
        signum,
        f'{self._job.stage}: interrupted after its last step; saved, run '
        'the same command again to continue',
      )

  def _evaluate(self, step: int, state: TrainState) -> dict[str, float]:
    """Scores on held-out images, of the average of the parameters if kept."""
    job = self._job
    assert job.evaluate is not None
    module = job.phases[job.phase_at(step)].module
    factor = None
    if 'diluted' in module.attention_modes:
      factor = dilution.factor_vector(
        job.dilution.factor(np.asarray(step, np.int32)),
        job.dilution.layers,
        module.depth,
      )
    params = state.params if state.ema is None else state.ema
    scores = job.evaluate(module, params, factor)
    return {f'holdout_{name}': value for name, value in scores.items()}

  def _save(
    self, step: int, state: TrainState, scores: dict[str, float]
  ) -> None:
    """Saves a checkpoint; only at λ = 0 with scores that can make it best."""
    modes = self._job.phases[self._job.phase_at(step)].module.attention_modes
    metrics = None
    if scores and 'diluted' not in modes:
      metrics = {
        name.removeprefix('holdout_'): value for name, value in scores.items()
      }
    persistence.save(self._job, self._checkpointer, state, metrics)


class _Log:
  """Collects metrics on the device and fetches them once per line.

  Fetching them after each step would keep the device waiting for the host.
  """

  def __init__(self, job: Job, metrics: MetricsWriter, step: int):
    self._job = job
    self._metrics = metrics
    self._pending: list[dict[str, Array]] = []
    self._logged = step
    self._time = time.monotonic()

  def add(self, values: dict[str, Array]) -> None:
    self._pending.append(values)

  def exclude(self, seconds: float) -> None:
    """Subtracts time that was not spent on training from the speed."""
    self._time += seconds

  def check(self) -> list[dict[str, Any]]:
    """Returns the metrics of the steps since the last line.

    Raises:
      DivergedError: a loss or gradient norm is not finite; names the first
        such step. Such a gradient spoils the parameters of the next step.
    """
    rows = jax.device_get(self._pending)
    for offset, row in enumerate(rows):
      for name in ('loss', 'gradient_norm'):
        if not math.isfinite(row[name]):
          bad = self._logged + offset
          what = name.replace('_', ' ')
          raise DivergedError(
            f'{self._job.stage}: the {what} is {row[name]} at step {bad}; the '
            'last checkpoint is good: lower the learning rate or set clip_norm'
          )
    return rows

  def flush(self, step: int, scores: dict[str, float]) -> str:
    """Writes one line with the means since the last; returns a summary."""
    rows = self.check()
    self._pending = []
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
      **scores,
    }
    self._metrics.write(self._job.stage, step, **values)
    self._logged, self._time = step, now
    return (
      f'loss {values["loss"]:.3f}  accuracy {values["accuracy"]:.3f}  '
      f'λ {values["lambda"]:.2f}  {values["images_per_second"]:.0f} images/s'
    )
