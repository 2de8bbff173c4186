"""Stage `benchmark`: sizes and speed, and whether they have been measured."""

from collections.abc import Callable
from typing import Any

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.cli.stages import finished as finished_lib
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.evaluation import benchmark
from lambda_vit_jax.models.model import Model

FILE = 'benchmark.json'


def sizes(run: Run) -> tuple[int, tuple[int, ...]]:
  """Images per call, and those of the sweep.

  Raises:
    UsageError: not whole numbers; names the key.
  """
  return config_values.benchmark_sizes(run.config['benchmark'])


def is_finished(run: Run) -> bool:
  """Whether all that is asked for is in the file; leading process."""
  path = run.path(FILE)
  if not path.exists():
    return False
  try:
    found = files.read_object(path)
  except CheckpointError:
    return False
  size, swept = sizes(run)
  done = {row['batch_size'] for row in found.get('sweep', ())}
  return found.get('batch_size') == size and set(swept) <= done


def measure(
  run: Run, dense: Model, pruned: Model, exported: Model | Callable[[Any], Any]
) -> None:
  """Dense, pruned and exported in turn; writes `benchmark.json`."""
  size, swept = sizes(run)
  models = {'dense': dense, 'pruned': pruned}
  programs = {}
  if isinstance(exported, Model):
    models['exported'] = exported
  else:
    programs['exported'] = benchmark.Program(
      exported, _program_sizes(run, pruned)
    )
  results = benchmark.compare(
    models,
    programs,
    batch_size=size,
    batch_sizes=swept,
    rounds=config_values.integer(
      run.config['benchmark']['rounds'], 'benchmark.rounds', 1
    ),
    reporter=run.reporter,
  )
  results['exported']['dtype'] = _storage(run)
  evaluation = run.path('evaluation.json')
  if evaluation.exists():
    scores = files.read_object(evaluation)
    for name in ('dense', 'pruned', 'exported'):
      for key in ('top1', 'mean_iou'):
        if key in scores[name]:
          results[name][key] = scores[name][key]
  run.write_json(FILE, results)


def _program_sizes(run: Run, pruned: Model) -> dict[str, int]:
  """The program computes the pruned model; its bytes are the file's."""
  return {
    'parameters': pruned.num_parameters,
    'macs': pruned.macs(),
    'macs_executed': pruned.macs(executed=True),
    'weight_bytes': run.path('export/model.stablehlo').stat().length,
  }


def _storage(run: Run) -> str:
  """The type that the exported weights are stored in."""
  fields = files.read_object(run.path('export/model.json'))
  return str(fields.get('folded', {}).get('dtype', 'float32'))


def benchmark_all(run: Run) -> None:
  """Sizes and speed, dense against pruned against exported in one run."""
  if run.leader:
    measure(
      run,
      run.load('pretrain'),
      finished_lib.pruned_model(run),
      exported_predict(run),
    )
