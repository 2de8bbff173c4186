r"""Compare every way to remove attention from a segmentation network.

Real digits on textures, two classes and the background, 24 x 24 pixels; a ViT
of 4 blocks and 144 tokens with the decoder `linear`, three seeds. Rows: the
dense network; without 2 of its 4 attention layers NOSE and `probe`, each with
dilution, and affine maps of the token instead of them without training
(`training-free`), also with refitted MLPs; one whole block dropped and MLPs
refitted; and all of these with token merging added at evaluation only. Mean IoU
over all test images, sizes, and images per second, timed in turn.

  python benchmarks/segmentation_table.py --workdir=runs/segmentation

All trained rows see the same number of steps in total: the dense baseline in
one schedule, the others in a shorter dense training followed by dilution. Rows
without training start from the dense network. Every run has its own workdir, so
the script resumes where it was stopped. About 15 minutes on two CPU cores.
Writes docs/benchmarks/segmentation_table.json.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import common
import jax
from method_table import speed

from lambda_vit_jax.cli.stages import (
  evaluate_masks,
  finished,
  registry,
)
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.models import variants
from lambda_vit_jax.models.edits import merge_tokens
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import sharding

ROOT = pathlib.Path(__file__).parents[1]
OUTPUT = common.RESULTS / 'segmentation_table.json'
CONFIG = 'ade20k_upernet_deit_base.py:linear,runlocal'
VARIANT = dataclasses.replace(
  variants.get_variant('vit_nano_patch2_8'),
  name='scenes',
  image_size=24,
  embed_dim=48,
  depth=4,
  num_heads=3,
)
SEEDS = range(3)
NUM_LAYERS, NUM_DROPPED, MERGE = 2, 1, 32
START_STEPS, DILUTION_STEPS, SETTLE_STEPS, PROBE_STEPS = 1000, 200, 800, 50
SPEED_BATCH = 32
SETTINGS = (
  f'--config.model.variant={VARIANT.name}',
  '--config.segment.num_classes=3',
  '--config.segment.evaluation=whole',
  '--config.segment.scale=(0.85, 1.2)',
  '--config.segment.most_of_one=1.0',
  '--config.segment.photometric=0',
  '--config.segment.flip=0',
  '--config.segment.dropout=0',
  '--config.batch_size=16',
  *(
    f'--config.{stage}.{option}'
    for stage in ('pretrain', 'dilute')
    for option in (
      'learning_rate=3e-3',
      'b2=0.98',
      'warmup_steps=50',
      'drop_path_rate=0',
    )
  ),
  f'--config.select.num_layers={NUM_LAYERS}',
  f'--config.select.probe_steps={PROBE_STEPS}',
  f'--config.dilute.dilution_steps={DILUTION_STEPS}',
  f'--config.dilute.settle_steps={SETTLE_STEPS}',
  '--config.log_every=50',
  '--config.checkpoint_every=1000',
)
# Rows without training, from the dense network.
FITTED = {
  'training-free': (),
  'training-free, refit': ('--config.linearize.refit=True',),
  'block dropped, refit': (
    '--config.select.num_layers=0',
    f'--config.linearize.num_drop_blocks={NUM_DROPPED}',
    '--config.linearize.refit=True',
  ),
}


def open_run(folder: str, name: str, seed: int, *arguments: str) -> Run:
  """Opens the workdir of one run."""
  workdir = f'{folder}/{name.replace(", ", "-").replace(" ", "-")}-{seed}'
  return common.open_run(
    f'{common.ROOT}/configs/{CONFIG}',
    workdir,
    f'--config.seed={seed}',
    *SETTINGS,
    *arguments,
  )


def trained(folder: str, name: str, seed: int, steps: int) -> Run:
  """A run with a trained dense network."""
  run = open_run(folder, name, seed, f'--config.pretrain.steps={steps}')
  registry.run_stage(run, 'pretrain')
  return run


def starting_at(run: Run, folder: str, name: str, *arguments: str) -> Run:
  """A run that starts from the dense network of another one."""
  return open_run(
    folder,
    name,
    run.config['seed'],
    f'--config.init={run.workdir}',
    '--config.pretrain.steps=0',
    *arguments,
  )


def models_of_seed(folder: str, seed: int) -> Iterator[tuple[str, Run, Model]]:
  """Yields every row without token merging."""
  start = trained(folder, 'start', seed, START_STEPS)
  total = START_STEPS + DILUTION_STEPS + SETTLE_STEPS
  dense = trained(folder, 'dense', seed, total)
  yield 'dense', dense, dense.load('pretrain')
  for criterion in ('transfer_entropy', 'probe'):
    run = starting_at(
      start, folder, criterion, f'--config.select.criterion={criterion}'
    )
    for stage in ('pretrain', 'select', 'dilute'):
      registry.run_stage(run, stage)
    yield f'{criterion} + dilution', run, run.load('dilute')
  for name, arguments in FITTED.items():
    run = starting_at(
      dense, folder, name, '--config.method=linearize', *arguments
    )
    for stage in ('pretrain', 'select', 'linearize'):
      registry.run_stage(run, stage)
    yield name, run, finished.load_linear(run)


def mean_iou(run: Run, model: Model) -> float:
  """Mean IoU over all test images, which have the network's image size."""
  return evaluate_masks.holdout_scores(
    model.module,
    sharding.replicate(model.params, run.mesh),
    run.eval_batches(model.preprocessing),
    run.mesh,
    None,
  )['mean_iou']


def rows_of_seed(folder: str, seed: int) -> dict[str, Any]:
  """Per row, its score, attention modes, kept blocks and model."""
  plain, merging = {}, {}
  for name, run, model in models_of_seed(folder, seed):
    merged = merge_tokens(model, MERGE)
    for rows, key, one in (
      (plain, name, model),
      (merging, f'{name} + merging', merged),
    ):
      rows[key] = {
        'model': one,
        'mean_iou': mean_iou(run, one),
        'modes': list(one.attention_modes),
        'kept_blocks': list(one.kept_blocks),
      }
      print(seed, key, rows[key]['mean_iou'], flush=True)
  return plain | merging


def write_table() -> None:
  """Runs everything that is missing, then writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', required=True)
  options = parser.parse_args()
  variants.VARIANTS[VARIANT.name] = VARIANT
  # Absolute, since the configs of other workdirs name it.
  folder = str(pathlib.Path(options.workdir).absolute())
  seeds = [rows_of_seed(folder, seed) for seed in SEEDS]
  found = {
    **common.provenance(),
    'config': CONFIG,
    'settings': SETTINGS,
    'num_layers': NUM_LAYERS,
    'num_dropped': NUM_DROPPED,
    'merge': MERGE,
    'steps': START_STEPS + DILUTION_STEPS + SETTLE_STEPS,
    'speed_batch': SPEED_BATCH,
    'rows': {
      name: {
        key: [rows[name][key] for rows in seeds]
        for key in ('mean_iou', 'modes', 'kept_blocks')
      }
      for name in seeds[0]
    },
    'speed': speed(
      {name: row['model'] for name, row in seeds[0].items()}, SPEED_BATCH
    ),
  }
  common.write(OUTPUT, found)


if __name__ == '__main__':
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  write_table()
