"""Stage `benchmark`: sizes and speed of dense, pruned and exported models."""

from lambda_vit_jax.cli import result_files, stage_table
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.evaluation import benchmark, timing
from lambda_vit_jax.models.model import Model


def is_finished(run: Run) -> bool:
  """Returns whether every requested batch size is measured; leading process."""
  try:
    found = result_files.read(run.workdir, stage_table.BENCHMARK)
  except CheckpointError:
    return False
  if found is None:
    return False
  settings = run.settings.benchmark
  done = {row['batch_size'] for row in found.get('sweep', ())}
  return (
    found.get('batch_size') == settings.batch_size
    and set(settings.batch_sizes) <= done
  )


def benchmark_all(run: Run) -> None:
  """Times dense, pruned and exported model in turn; writes `benchmark.json`."""
  if not run.leader:
    return
  settings = run.settings.benchmark
  pruned, exported = pruned_model(run), exported_predict(run)
  models = {'dense': run.load('pretrain'), 'pruned': pruned}
  programs = {}
  if isinstance(exported, Model):
    models['exported'] = exported
  else:
    sizes = {
      'parameters': pruned.num_parameters,
      'macs': pruned.macs(),
      'macs_executed': pruned.macs(executed=True),
      # The program's file holds its weights.
      'weight_bytes': run.path('export/model.stablehlo').stat().length,
    }
    programs['exported'] = benchmark.ExportedProgram(exported, sizes)
  results = benchmark.compare(
    models,
    programs,
    batch_size=settings.batch_size,
    limits=timing.Limits(settings.rounds, settings.seconds, settings.precision),
    reporter=run.reporter,
    batch_sizes=settings.batch_sizes,
  )
  fields = result_files.read(run.workdir, stage_table.EXPORT) or {}
  storage = fields.get('folded', {}).get('dtype', 'float32')
  results['exported']['dtype'] = str(storage)
  scores = result_files.read(run.workdir, stage_table.EVALUATION) or {}
  for name in ('dense', 'pruned', 'exported'):
    for key in ('top1', 'mean_iou'):
      if key in scores.get(name, {}):
        results[name][key] = scores[name][key]
  run.write_json(stage_table.BENCHMARK, results)
