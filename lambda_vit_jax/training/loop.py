"""The training loop: phases, logging, evaluation, checkpoints, interruption.

`fit` runs a `Job` and returns the final parameters. It knows no config and no
command line; the stages build the job.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.errors import LambdaVitError, StoppedError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.runtime import sharding, signals
from lambda_vit_jax.runtime.progress import Bar, Reporter
from lambda_vit_jax.training import persistence, step_memory
from lambda_vit_jax.training.job import Job
from lambda_vit_jax.training.metrics import MetricsWriter
from lambda_vit_jax.training.step import TrainState, make_train_step

# The host prepares a step while the device computes the one before, but not
# dozens of them: all would have to end before a signal is answered, and each
# holds its batch.
_STEPS_AHEAD = 1


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
      log = _Log(job, metrics, step)
      loop = _Loop(job, checkpointer, mesh, log, bar, stop, reporter, step)
      try:
        for index in range(len(job.phases)):
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
  return state.averaged


@dataclasses.dataclass(frozen=True)
class _Loop:
  """What the phases of one call of `fit` share; `first` is its first step."""

  job: Job
  checkpointer: orbax_store.Checkpointer
  mesh: Mesh
  log: '_Log'
  bar: Bar
  stop: signals.StopFlag
  reporter: Reporter
  first: int

  def run_phase(self, index: int, state: TrainState) -> TrainState:
    """Trains to the end of a phase; returns the state of the next one."""
    job, phase = self.job, self.job.phases[index]
    step = int(state.step)
    if step >= phase.until:
      return state
    teacher, teacher_params = job.teacher or (None, None)
    if teacher_params is not None:
      teacher_params = sharding.replicate(teacher_params, self.mesh)
    train_step = make_train_step(
      phase.module,
      job.optimizer,
      job.loss,
      job.dilution.within(phase.blend),
      job.seed,
      self.mesh,
      sharding.tree_shardings(state, self.mesh),
      teacher,
    )
    batches = job.make_batches(step)
    while step < phase.until:
      job.window.before(step)
      batch = sharding.put_batch(next(batches), self.mesh)
      # Later phases need about as much, or less.
      if step == self.first:
        arguments = (state, batch, teacher_params)
        step_memory.report(
          job.stage, job.batch_size, train_step, arguments, self.reporter
        )
      state, values = train_step(state, batch, teacher_params)
      step += 1
      job.window.after(step, values)
      self.log.pending.append(values)
      if len(self.log.pending) > _STEPS_AHEAD:
        jax.block_until_ready(self.log.pending[-1 - _STEPS_AHEAD])
      for following in job.begun(step)[index + 1 :]:
        state = following.prune(state)
      self._after_step(step, state, last=step == phase.until)
    return state

  def _after_step(self, step: int, state: TrainState, last: bool) -> None:
    """Logs, evaluates, saves and stops if it is time to."""
    job = self.job
    # A signal during the last step is handled by `end`.
    signum = self.stop.reached(step) if step < job.total_steps else 0
    planned = step % job.checkpoint_every == 0 or last
    due = planned or bool(signum)
    # Only a checkpoint at λ = 0 can be the best one, and only one that a run
    # without a signal has, too.
    diluted = 'diluted' in job.module_at(step).attention_modes
    candidate = planned and not diluted
    wanted = bool(job.eval_every) and (last or step % job.eval_every == 0)
    scores: dict[str, float] = {}
    # A signal asks to stop soon: skip an evaluation that decides nothing.
    if job.evaluate is not None and wanted and (candidate or not signum):
      self.log.check()
      began = time.monotonic()
      phase = job.begun(step)[-1]
      at, dilution = (
        np.asarray(step, np.int32),
        job.dilution.within(phase.blend),
      )
      scores = job.evaluate(
        phase.module,
        dilution.blended(state.averaged, at),
        dilution.block_factors(at, phase.module.attention_modes),
      )
      # Not part of the speed of training.
      self.log.since += time.monotonic() - began
    if step % job.log_every == 0 or due or scores:
      self.bar.update(step, self.log.flush(step, scores))
    if due:
      self.log.metrics.save()
      metrics = scores or None if candidate else None
      with self.stop.saving():
        persistence.save(job, self.checkpointer, state, metrics)
        if signum:
          self.checkpointer.wait()
    if signum:
      raise self._stopped(signum, f'at step {step} of {job.total_steps}')

  def end(self) -> None:
    """Stops after the last step if a signal came during it."""
    with self.stop.saving():
      self.checkpointer.wait()
    signum = self.stop.finish()
    if signum:
      raise self._stopped(signum, 'after its last step')

  def _stopped(self, signum: int, when: str) -> StoppedError:
    return StoppedError(
      signum,
      f'{self.job.stage}: interrupted {when}; saved, run the same command '
      'again to continue',
    )


@dataclasses.dataclass
class _Log:
  """Collects metrics on the device and fetches them once per line.

  Fetching them after each step would keep the device waiting for the host.
  `pending` are the metrics of the steps after the last line, that of `step`.
  """

  job: Job
  metrics: MetricsWriter
  step: int
  pending: list[dict[str, Array]] = dataclasses.field(default_factory=list)
  since: float = dataclasses.field(default_factory=time.monotonic)

  def check(self) -> list[dict[str, Any]]:
    """Returns the metrics of the steps since the last line.

    Raises:
      DivergedError: a loss or gradient norm is not finite; names the first
        such step. Such a gradient spoils the parameters of the next step.
    """
    rows = jax.device_get(self.pending)
    for bad, row in enumerate(rows, self.step):
      for name in ('loss', 'gradient_norm'):
        if not math.isfinite(row[name]):
          raise DivergedError(
            f'{self.job.stage}: the {name.replace("_", " ")} is {row[name]} at '
            f'step {bad}; the last checkpoint is good: lower the learning rate '
            'or set clip_norm'
          )
    return rows

  def flush(self, step: int, scores: dict[str, float]) -> str:
    """Writes one line with the means since the last; returns a summary."""
    rows = self.check()
    now = time.monotonic()
    images = len(rows) * self.job.batch_size

    def mean(name: str) -> float:
      return float(np.mean([row[name] for row in rows]))

    means = {
      name: mean(name) for name in ('loss', 'accuracy') if name in rows[0]
    }
    values = {
      'epoch': step / self.job.steps_per_epoch,
      **means,
      'learning_rate': float(self.job.learning_rate(step - 1)),
      'lambda': float(rows[-1]['lambda']),
      'gradient_norm': mean('gradient_norm'),
      'images_per_second': images / max(now - self.since, 1e-9),
      **{f'holdout_{name}': value for name, value in scores.items()},
    }
    self.metrics.write(self.job.stage, step, **values)
    self.pending, self.step, self.since = [], step, now
    shown = [f'{name} {value:.3f}' for name, value in means.items()]
    if self.job.dilution.layers:
      shown.append(f'λ {values["lambda"]:.2f}')
    return '  '.join([*shown, f'{values["images_per_second"]:.0f} images/s'])
