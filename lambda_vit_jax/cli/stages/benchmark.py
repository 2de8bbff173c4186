"""Stage `benchmark`: sizes and speed of dense, pruned and exported models."""

from collections.abc import Callable
from typing import Any

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.evaluation import benchmark
from lambda_vit_jax.models.model import Model


def is_finished(run: Run) -> bool:
  """Returns whether every requested batch size is measured; leading process."""
  path = run.path(stage_table.BENCHMARK)
  if not path.exists():
    return False
  try:
    found = files.read_object(path)
  except CheckpointError:
    return False
  settings = run.settings.benchmark
  done = {row['batch_size'] for row in found.get('sweep', ())}
  return (
    found.get('batch_size') == settings.batch_size
    and set(settings.batch_sizes) <= done
  )


def measure(
  run: Run, dense: Model, pruned: Model, exported: Model | Callable[[Any], Any]
) -> None:
  """Times the models in turn; writes `benchmark.json`."""
  settings = run.settings.benchmark
  models = {'dense': dense, 'pruned': pruned}
  programs = {}
  if isinstance(exported, Model):
    models['exported'] = exported
  else:
    programs['exported'] = benchmark.ExportedProgram(
      exported, _program_sizes(run, pruned)
    )
  results = benchmark.compare(
    models,
    programs,
    batch_size=settings.batch_size,
    batch_sizes=settings.batch_sizes,
    rounds=settings.rounds,
    reporter=run.reporter,
  )
  results['exported']['dtype'] = _storage(run)
  evaluation = run.path(stage_table.EVALUATION)
  if evaluation.exists():
    scores = files.read_object(evaluation)
    for name in ('dense', 'pruned', 'exported'):
      for key in ('top1', 'mean_iou'):
        if key in scores[name]:
          results[name][key] = scores[name][key]
  run.write_json(stage_table.BENCHMARK, results)


def _program_sizes(run: Run, pruned: Model) -> dict[str, int]:
  """Returns the pruned model's sizes, with the bytes of the program's file."""
  return {
    'parameters': pruned.num_parameters,
    'macs': pruned.macs(),
    'macs_executed': pruned.macs(executed=True),
    'weight_bytes': run.path('export/model.stablehlo').stat().length,
  }


def _storage(run: Run) -> str:
  """Returns the storage type of the exported weights."""
  fields = files.read_object(run.path(stage_table.EXPORT))
  return str(fields.get('folded', {}).get('dtype', 'float32'))


def benchmark_all(run: Run) -> None:
  """Measures dense, pruned and exported model in one run."""
  if run.leader:
    measure(
      run,
      run.load('pretrain'),
      pruned_model(run),
      exported_predict(run),
    )
