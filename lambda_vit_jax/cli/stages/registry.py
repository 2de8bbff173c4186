"""The stages of a run, in order, and what makes each of them finished.

Every stage is a function of a `Run`. It reads what earlier stages left in the
workdir and writes its own result there last and atomically, so that a killed
command loses nothing and `run` starts again at the first unfinished stage.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import config_values, task, workdir
from lambda_vit_jax.cli.report import build
from lambda_vit_jax.cli.stages import (
  benchmark,
  evaluate_masks,
  select,
  training_job,
)
from lambda_vit_jax.cli.stages import linearize as linearize_lib
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.exporters import export, formats
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import processes


def linearize(run: Run) -> None:
  """Least-squares maps in place of the chosen attentions; no training."""
  dense = run.load('pretrain')
  limit = config_values.optional_count(
    run.config['linearize']['num_images'], 'linearize.num_images'
  )
  linearize_lib.fit(
    run,
    dense,
    select.removed_layers(run, dense.depth),
    select.selection_batches(run, dense, limit),
    select.memory_gib(run),
  )


def export_model(run: Run) -> None:
  """Writes `export/`, each format checked against the model."""
  if not run.leader:
    return
  settings = run.config['export']
  model = linearize_lib.pruned_model(run)
  # Logits per pixel are many.
  number = 2 if task.segments(run.config) else 8
  batch = next(run.holdout_batches(model.preprocessing, number, alone=True))
  images = batch['image'][:number]
  results = export.export(
    model,
    run.path('export'),
    formats=tuple(settings['formats']),
    dtype=settings['dtype'],
    zero_fill=settings['zero_fill'],
    check_images=images,
    int8_arithmetic=settings['int8_arithmetic'],
  )
  for line in results.get('warnings', ()):
    run.reporter.warn(line)


def exported_predict(run: Run) -> Model | Callable[[Any], Any]:
  """The exported program: `model.stablehlo`, else the folder reloaded."""
  program = run.path('export') / 'model.stablehlo'
  if program.exists():
    load.check_exported(run.path('export'), 'model.stablehlo')
    return formats.read_stablehlo(program)
  return load.load_export(run.path('export'))


def evaluate_all(run: Run) -> None:
  """Accuracy of dense, pruned and exported over every test image."""
  total = len(run.dataset.test)
  results: dict[str, Mapping[str, Any]] = {}
  models = {
    'dense': run.load('pretrain'),
    'pruned': linearize_lib.pruned_model(run),
  }
  with run.reporter.bar('evaluate', 3 * total) as bar:
    if task.segments(run.config):
      found = evaluate_masks.evaluate(
        run, models, exported_predict(run), bar.advance
      )
      run.write_json('evaluation.json', found)
      return
    for name, model in models.items():
      results[name] = accuracy.evaluate_model(
        model,
        run.eval_batches(model.preprocessing),
        run.mesh,
        bar.advance,
      )
    results['exported'] = accuracy.evaluate_program(
      exported_predict(run), run.eval_batches(model.preprocessing), bar.advance
    )
  run.write_json('evaluation.json', results)


def benchmark_all(run: Run) -> None:
  """Sizes and speed, dense against pruned against exported in one run."""
  if run.leader:
    benchmark.measure(
      run,
      run.load('pretrain'),
      linearize_lib.pruned_model(run),
      exported_predict(run),
    )


def write_report(run: Run) -> None:
  """One self-contained page from what is in the workdir."""
  if run.leader:
    build.write_report(run.workdir)


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
      training_job.pretrain,
      _trained('pretrain', training_job.pretrain_steps),
    ),
    Stage('analyze', select.analyze, _has('analysis.json')),
    Stage('select', select.select, _has('selection.json')),
    Stage(
      'linearize',
      linearize,
      _has('linear/model.json'),
      lambda run: (
        config_values.method(run.config) == 'linearize'
        or config_values.is_warm(run.config)
      ),
    ),
    Stage(
      'dilute',
      training_job.dilute,
      _trained('dilute', lambda run: sum(training_job.dilution_steps(run))),
      lambda run: config_values.method(run.config) == 'dilute',
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
