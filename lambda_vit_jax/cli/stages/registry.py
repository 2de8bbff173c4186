"""The stages of a run, in order, and what makes each of them finished.

Every stage is a function of a `Run`. It reads what earlier stages left in the
workdir and writes its own result there last and atomically, so that a killed
command loses nothing and `run` starts again at the first unfinished stage.
"""

import dataclasses
from collections.abc import Callable

from lambda_vit_jax.cli import workdir
from lambda_vit_jax.cli.stages import (
  analyze,
  benchmark,
  dilute,
  pretrain,
  select,
)
from lambda_vit_jax.cli.stages.benchmark import benchmark_all
from lambda_vit_jax.cli.stages.evaluate import evaluate_all
from lambda_vit_jax.cli.stages.export import export_model
from lambda_vit_jax.cli.stages.linearize import linearize
from lambda_vit_jax.cli.stages.report import write_report
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage, how to see that it is finished, and whether `run` has it."""

  name: str
  run: Callable[[Run], None]
  finished: Callable[[Run], bool]
  needed: Callable[[Run], bool] = lambda run: True


def _has(name: str) -> Callable[[Run], bool]:
  return lambda run: run.path(name).exists()


def _trained(stage: str, total: Callable[[Run], int]) -> Callable[[Run], bool]:
  return lambda run: workdir.finished_step(run.workdir, stage) == total(run)


STAGES: dict[str, Stage] = {
  stage.name: stage
  for stage in (
    Stage(
      'pretrain',
      pretrain.pretrain,
      _trained('pretrain', pretrain.pretrain_steps),
    ),
    Stage('analyze', analyze.analyze, _has('analysis.json')),
    Stage('select', select.select, _has('selection.json')),
    Stage(
      'linearize',
      linearize,
      _has('linear/model.json'),
      lambda run: (
        run.settings.method == 'linearize' or run.settings.dilute.is_warm
      ),
    ),
    Stage(
      'dilute',
      dilute.dilute,
      _trained('dilute', lambda run: sum(dilute.dilution_steps(run))),
      lambda run: run.settings.method == 'dilute',
    ),
    Stage('export', export_model, _has('export/model.json')),
    Stage('evaluate', evaluate_all, _has('evaluation.json')),
    Stage('benchmark', benchmark_all, benchmark.is_finished),
    # Cheap, and always of the newest results.
    Stage('report', write_report, lambda run: False),
  )
}


def needed(run: Run) -> tuple[str, ...]:
  """The stages of `run` with this config, in order."""
  return tuple(name for name, stage in STAGES.items() if stage.needed(run))


def run_stage(run: Run, name: str) -> bool:
  """Runs one stage unless it is finished; returns whether it ran.

  All processes of a job leave it together, so that none of them reads what
  the leading one has not written yet.
  """
  stage = STAGES[name]
  if processes.from_leader(lambda: stage.finished(run)):
    run.reporter.say(f'{name}: already done')
    return False
  run.reporter.say(f'{name}: starting')
  stage.run(run)
  processes.barrier()
  return True


def run_all(run: Run) -> None:
  """All stages in order, from the first unfinished one on."""
  for name in needed(run):
    run_stage(run, name)
