"""Map each stage to its function and to the check that it is finished.

Every stage is a function of a `Run`. It reads what earlier stages left in the
workdir and writes its own result there last and atomically, so that a killed
command loses nothing and `run` resumes at the first unfinished stage. The files
that a stage writes are listed in `cli/stage_table.py`.
"""

import dataclasses
import time
from collections.abc import Callable

from lambda_vit_jax.cli import stage_table, workdir
from lambda_vit_jax.cli.report import build
from lambda_vit_jax.cli.stage_table import StageSpec
from lambda_vit_jax.cli.stages import (
  baseline,
  benchmark,
  dilute,
  export,
  journal,
  pretrain,
)
from lambda_vit_jax.cli.stages.analyze import analyze
from lambda_vit_jax.cli.stages.compress import compress
from lambda_vit_jax.cli.stages.evaluate import evaluate_all
from lambda_vit_jax.cli.stages.linearize import linearize
from lambda_vit_jax.cli.stages.select import select
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.runtime import interrupts, processes


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage with its functions.

  Attributes:
    spec: its name, its help and the files it writes.
    run: does the work.
    is_finished: by default, whether its result is in the workdir.
    is_needed: whether `run` includes it.
  """

  spec: StageSpec
  run: Callable[[Run], None]
  is_finished: Callable[[Run], bool] | None = None
  is_needed: Callable[[Run], bool] = lambda run: True

  def finished(self, run: Run) -> bool:
    """Returns whether there is nothing left to do; leading process."""
    if self.is_finished is not None:
      return self.is_finished(run)
    return run.path(self.spec.result).exists()


def _trained(stage: str, total: Callable[[Run], int]) -> Callable[[Run], bool]:
  return lambda run: workdir.finished_step(run.workdir, stage) == total(run)


def _baseline_is_finished(run: Run) -> bool:
  """Also where scores are there: those of an earlier version have no such row."""
  total = sum(dilute.dilution_steps(run))
  return (
    workdir.finished_step(run.workdir, 'baseline') == total
    or run.path(stage_table.EVALUATION).exists()
  )


def _report(run: Run) -> None:
  if run.leader:
    build.write_report(run.workdir, run.reporter.warn)


_SPECS = stage_table.STAGES

STAGES: dict[str, Stage] = {
  stage.spec.name: stage
  for stage in (
    Stage(
      _SPECS['pretrain'],
      pretrain.pretrain,
      is_finished=_trained('pretrain', pretrain.pretrain_steps),
    ),
    Stage(
      _SPECS['analyze'],
      analyze,
      # Nothing depends on it.
      is_needed=lambda run: run.settings.data.holdout_images > 0,
    ),
    Stage(
      _SPECS['select'],
      select,
      is_needed=lambda run: 'compress' not in run.settings.fitted_stages,
    ),
    Stage(
      _SPECS['linearize'],
      linearize,
      is_needed=lambda run: 'linearize' in run.settings.fitted_stages,
    ),
    Stage(
      _SPECS['compress'],
      compress,
      is_needed=lambda run: 'compress' in run.settings.fitted_stages,
    ),
    Stage(
      _SPECS['dilute'],
      dilute.dilute,
      is_finished=_trained(
        'dilute', lambda run: sum(dilute.dilution_steps(run))
      ),
      is_needed=lambda run: run.settings.method == 'dilute',
    ),
    Stage(
      _SPECS['export'], export.export_model, is_finished=export.is_finished
    ),
    Stage(
      _SPECS['baseline'],
      baseline.baseline,
      is_finished=_baseline_is_finished,
      is_needed=lambda run: run.settings.has_baseline,
    ),
    Stage(_SPECS['evaluate'], evaluate_all),
    Stage(
      _SPECS['benchmark'],
      benchmark.benchmark_all,
      is_finished=benchmark.is_finished,
    ),
    # Cheap, and always made from the newest results.
    Stage(_SPECS['report'], _report, is_finished=lambda run: False),
  )
}


def needed(run: Run) -> tuple[str, ...]:
  """Returns the stages of `run` with this config, in order."""
  return tuple(name for name, stage in STAGES.items() if stage.is_needed(run))


def run_stage(run: Run, name: str, place: str = '') -> bool:
  """Runs one stage unless it is finished; returns whether it ran.

  `place` says which stage of how many it is, for its first line.

  All processes of a job leave it together, so that none of them reads what
  the leading one has not written yet.
  """
  interrupts.check()
  stage = STAGES[name]
  if processes.from_leader(lambda: stage.finished(run)):
    run.reporter.say(f'{name}: already done')
    return False
  run.reporter.say(f'{name}: starting{place}')
  start = time.perf_counter()
  stage.run(run)
  # A report changes no result, and may be made beside another job.
  if run.leader and name != 'report':
    journal.note(run, name, time.perf_counter() - start)
  processes.barrier()
  return True
