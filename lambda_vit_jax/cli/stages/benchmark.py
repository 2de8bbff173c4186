"""Stage `benchmark`: sizes and speed of dense, pruned and exported models."""

import dataclasses
from typing import Any

import numpy as np

from lambda_vit_jax.cli import result_files, runtime_comparison, stage_table
from lambda_vit_jax.cli.stages.export import exported_predict, held_out_images
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.evaluation import benchmark, timing
from lambda_vit_jax.evaluation.programs import Samples
from lambda_vit_jax.exporters import runtimes
from lambda_vit_jax.models.macs import block_sizes
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
  wanted = {name for name in settings.runtimes if not runtimes.missing(name)}
  return (
    found.get('batch_size') == settings.batch_size
    and set(settings.batch_sizes) <= done
    and wanted <= set(found.get('runtimes', {}))
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
  limits = timing.Limits(settings.rounds, settings.seconds, settings.precision)
  results = benchmark.compare(
    models,
    programs,
    batch_size=settings.batch_size,
    limits=limits,
    reporter=run.reporter,
    batch_sizes=settings.batch_sizes,
  )
  for name in ('dense', 'pruned'):
    results[name]['blocks'] = _blocks(models[name])
  fields = result_files.read(run.workdir, stage_table.EXPORT) or {}
  storage = fields.get('folded', {}).get('dtype', 'float32')
  results['exported']['dtype'] = str(storage)
  scores = result_files.read(run.workdir, stage_table.EVALUATION) or {}
  for name in ('dense', 'pruned', 'exported'):
    for key in ('top1', 'mean_iou'):
      if key in scores.get(name, {}):
        results[name][key] = scores[name][key]
  if settings.runtimes:
    measured = runtime_comparison.compare_runtimes(
      settings.runtimes,
      {'dense': models['dense'], 'pruned': pruned},
      run.path('export'),
      _samples(run, models['dense'], pruned),
      limits,
      run.reporter,
    )
    results['versions'] |= measured.pop('versions')
    results |= measured
  run.write_json(stage_table.BENCHMARK, results)


def _blocks(model: Model) -> list[dict[str, Any]]:
  """What is in each block that a model has, and what it executes."""
  kept = model.kept_blocks or range(model.depth)
  sizes = block_sizes(model.module, executed=True)
  return [
    {'block': block} | dataclasses.asdict(size)
    for block, size in zip(kept, sizes, strict=True)
  ]


def _samples(run: Run, dense: Model, pruned: Model) -> Samples:
  """The test images that programs of runtimes are run on."""
  settings = run.settings.benchmark
  limit = max(settings.test_images, settings.batch_size)
  batches = list(run.eval_batches(pruned.preprocessing, limit, alone=True))
  images = np.concatenate([batch['image'][batch['mask']] for batch in batches])
  held = held_out_images(run, pruned, 64)
  calibration = images if held is None else held[0]
  # A test set may be smaller than a batch.
  images = images[np.arange(settings.batch_size) % len(images)]
  labelled = (
    batches if settings.test_images and not run.settings.segments else ()
  )
  return runtime_comparison.make_samples(
    {'dense': dense, 'pruned': pruned}, images, calibration, labelled
  )
