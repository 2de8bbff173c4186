r"""One table per data set that compares every way to remove attention.

Rows, with 6 of 12 attention layers removed and three seeds: the dense network;
NOSE, `probe` and every other static criterion, each with dilution;
training-free (the dense network with affine maps, 512 unlabeled images); blocks
dropped (the dense network without 4 consecutive blocks, those with the smallest
angle between input and output, and MLPs refitted to the same images); and these
with token merging added at evaluation only. Top-1 on all test images, its paired
difference to the dense network, sizes, and images per second, timed in turn in
one run.

  python benchmarks/method_table.py --name=digits --workdir=runs/method_digits
  python benchmarks/method_table.py --name=fashion_mnist \
    --workdir=runs/fashion_table

All trained rows see the same number of steps in total: the dense baseline in
one cosine schedule, the others in a shorter dense training followed by
dilution. Sets that several criteria choose are diluted once. Every run has its
own workdir, so the script resumes where it was stopped; with the workdir of
`fashion_mnist_table.py` it reuses that script's `start`, `dense` and NOSE runs.
About 40 minutes for digits on one CPU core, 100 for Fashion-MNIST on two.
Writes its entry of docs/benchmarks/method_table.json.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from typing import Any

import common
import fashion_mnist_table
import jax
import jax.numpy as jnp
import numpy as np
from fashion_mnist_table import PRUNED, SETTINGS, hits, paired

from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core import files
from lambda_vit_jax.core.schema import Object
from lambda_vit_jax.evaluation import benchmark
from lambda_vit_jax.models.edits import drop_blocks, merge_tokens
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import probe
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.options import SearchOptions
from lambda_vit_jax.training_free import block_spans, linear_maps
from lambda_vit_jax.training_free.mlp_refit import refit

ROOT = pathlib.Path(__file__).parents[1]
OUTPUT = common.RESULTS / 'method_table.json'
SEEDS = range(3)
NUM_LAYERS = 6
NUM_DROPPED = 4
CALIBRATION_IMAGES = 512
# Of 17 tokens, at each remaining attention layer but the first.
MERGE, MERGE_START = 1, 1
SPEED_BATCH, SPEED_ROUNDS = 64, 15
# Criterion of the training-free row, fixed before any of its test results.
TRAINING_FREE = {'criterion': 'affine'}
NOSE, PROBE = 'transfer_entropy', 'probe'


@dataclasses.dataclass(frozen=True)
class DataSet:
  """Arguments of the runs of one data set."""

  config: str
  common: tuple[str, ...]
  start: str
  dense: str
  dilution: tuple[str, ...]


DATA_SETS = {
  'digits': DataSet(
    'digits.py:scratch',
    (f'--config.data.holdout_images={CALIBRATION_IMAGES}',),
    start='1000',
    dense='1450',
    dilution=(),
  ),
  'fashion_mnist': DataSet(
    'fashion_mnist.py',
    SETTINGS,
    start='5ep',
    dense='20ep',
    dilution=(
      '--config.dilute.learning_rate=2e-3',
      '--config.dilute.dilution_steps=5ep',
      '--config.dilute.settle_steps=10ep',
    ),
  ),
}


class Runs:
  """The workdirs of one data set and seed."""

  def __init__(self, options: argparse.Namespace, seed: int):
    self._data = DATA_SETS[options.name]
    self._folder = options.workdir
    self._source = options.source
    self._options = options
    self._seed = seed

  def _open(self, name: str, *arguments: str) -> Run:
    workdir = f'{self._folder}/{name}-{self._seed}'
    source = [f'--config.data.source={self._source}'] if self._source else []
    return common.open_run(
      f'{common.ROOT}/configs/{self._data.config}',
      workdir,
      f'--config.seed={self._seed}',
      *source,
      *self._data.common,
      *arguments,
    )

  def trained(self, name: str) -> Run:
    """`start` or `dense`, trained."""
    steps = getattr(self._data, name)
    run = self._open(name, f'--config.pretrain.steps={steps}')
    registry.run_stage(run, 'pretrain')
    return run

  def _removing(self, name: str, *arguments: str) -> Run:
    return self._open(
      name,
      f'--config.init={self._folder}/start-{self._seed}',
      '--config.pretrain.steps=0',
      f'--config.select.num_layers={NUM_LAYERS}',
      *self._data.dilution,
      *arguments,
    )

  def proposals(self) -> dict[str, tuple[int, ...]]:
    """The layers that each static criterion, and the probe, would remove."""
    run = self._removing(
      f'probe-{NUM_LAYERS}', '--config.select.criterion=probe'
    )
    path = run.path('proposals.json')
    if not path.exists():
      registry.run_stage(run, 'pretrain')
      model = run.load('pretrain')
      images = list(run.holdout_batches(model.preprocessing))
      files.write_json(
        path,
        probe.proposals(model, images, SearchOptions(num_layers=NUM_LAYERS)),
      )
    registry.run_stage(run, 'pretrain')
    registry.run_stage(run, 'select')
    chosen = files.read_json(run.path('selection.json'), Object())['removed']
    found = files.read_json(path, Object()) | {PROBE: chosen}
    return {name: tuple(layers) for name, layers in found.items()}

  def diluted(self, layers: tuple[int, ...]) -> Run:
    """The `start` network after dilution of `layers`."""
    if self._options.name == 'fashion_mnist':
      (arm,) = (arm for arm in PRUNED if arm.num_layers == NUM_LAYERS)
      path = pathlib.Path(self._folder, f'{arm.name}-{self._seed}/score.json')
      # That script has taken the same steps from the same start.
      if path.exists() and json.loads(path.read_text())['removed'] == [*layers]:
        return fashion_mnist_table.open_run(self._options, arm, self._seed)
    run = self._removing(
      'set-' + '-'.join(map(str, layers)),
      '--config.select.criterion=given',
      f'--config.select.layers={layers}',
    )
    for stage in ('pretrain', 'select', 'dilute'):
      registry.run_stage(run, stage)
    return run


def right(run: Run, model: Model, key: str) -> np.ndarray:
  """`hits`, cached in the workdir under `key`."""
  path = run.path('hits.json')
  found = files.read_json(path, Object()) if path.exists() else {}
  if key not in found:
    found[key] = np.packbits(hits(run, model)).tobytes().hex()
    found['num_images'] = len(hits(run, model))
    files.write_json(path, found)
  bits = np.unpackbits(np.frombuffer(bytes.fromhex(found[key]), np.uint8))
  return bits[: found['num_images']].astype(bool)


def training_free(run: Run) -> tuple[tuple[int, ...], Model]:
  """The dense network with affine maps for some attention layers."""
  dense = run.load('pretrain')
  images = list(run.holdout_batches(dense.preprocessing, CALIBRATION_IMAGES))
  layers = nose(
    dense, images, num_layers=NUM_LAYERS, resamples=0, **TRAINING_FREE
  ).removed
  unlabeled = [{key: b[key] for key in ('image', 'mask')} for b in images]
  return layers, linear_maps.linearize(dense, unlabeled, layers)


def blocks_dropped(run: Run) -> tuple[tuple[int, ...], Model]:
  """The dense network without some blocks, and with refitted MLPs."""
  dense = run.load('pretrain')
  images = list(run.holdout_batches(dense.preprocessing, CALIBRATION_IMAGES))
  unlabeled = [{key: b[key] for key in ('image', 'mask')} for b in images]
  blocks = block_spans.choose_blocks(dense, unlabeled, NUM_DROPPED)
  return blocks, refit(drop_blocks(dense, blocks), dense, unlabeled)


def rows_of_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
  """Per row, its layers, its hits and its model."""
  runs = Runs(options, seed)
  runs.trained('start')
  dense = runs.trained('dense')
  model = dense.load('pretrain')
  rows = {'dense': ((), right(dense, model, 'dense'), model)}
  merge = functools.partial(merge_tokens, merge=MERGE, start=MERGE_START)
  for name, layers in runs.proposals().items():
    run = runs.diluted(layers)
    model = run.load('dilute')
    row = f'{name} + dilution'
    rows[row] = layers, right(run, model, 'diluted'), model
    if name in (NOSE, PROBE):
      merged = merge(model)
      hit = right(run, merged, f'merged {MERGE} from {MERGE_START}')
      rows[f'{row} + merging'] = layers, hit, merged
    print(seed, row, layers, rows[row][1].mean(), flush=True)
  for row, make in (
    ('training-free', training_free),
    ('blocks dropped', blocks_dropped),
  ):
    layers, model = make(dense)
    for name, one in ((row, model), (f'{row} + merging', merge(model))):
      rows[name] = layers, right(dense, one, f'{name} {layers}'), one
      print(seed, name, layers, rows[name][1].mean(), flush=True)
  return rows


def accuracy(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
  """Accuracy of one row over all seeds."""
  found = [of_seed[name] for of_seed in rows]
  as_dict = [
    [
      {
        'hits': np.packbits(of_seed[key][1]).tobytes().hex(),
        'num_images': len(of_seed[key][1]),
      }
      for of_seed in rows
    ]
    for key in (name, 'dense')
  ]
  by_seed = [float(hit.mean()) for _, hit, _ in found]
  return {
    'removed': [list(layers) for layers, _, _ in found],
    'top1': float(np.mean(by_seed)),
    'by_seed': by_seed,
    'minus_dense': paired(*as_dict),
  }


SPEED_ROWS = (
  'dense',
  f'{NOSE} + dilution',
  f'{PROBE} + dilution',
  'training-free',
  'blocks dropped',
  f'{NOSE} + dilution + merging',
  f'{PROBE} + dilution + merging',
  'training-free + merging',
  'blocks dropped + merging',
)


def speed(models: dict[str, Model], batch: int = SPEED_BATCH) -> dict[str, Any]:
  """Sizes and images per second of models, timed in turn; one is `dense`."""
  module = models['dense'].module
  shape = (batch, *module.image_size, module.in_chans)
  images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  calls, sizes = {}, {}
  for name, model in models.items():
    calls[name], sizes[name] = benchmark.compile_model(model, images)
  seconds = benchmark.time_in_turn(calls, SPEED_ROUNDS)
  found = {}
  for name, times in seconds.items():
    ratios = [a / b for a, b in zip(seconds['dense'], times, strict=True)]
    found[name] = {
      **{key: sizes[name][key] for key in benchmark.OF_MODEL},
      'images_per_second': batch / float(np.median(times)),
      'over_dense': common.spread(ratios),
    }
  return found


def write_table() -> None:
  """Runs everything that is missing, then writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--name', choices=DATA_SETS, required=True)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--source', default='')
  options = parser.parse_args()
  # Absolute, since the configs of other workdirs name it.
  options.workdir = str(pathlib.Path(options.workdir).absolute())
  rows = [rows_of_seed(options, seed) for seed in SEEDS]
  data = DATA_SETS[options.name]
  result = {
    **common.provenance(),
    'config': data.config,
    'settings': dataclasses.asdict(data),
    'num_layers': NUM_LAYERS,
    'num_dropped': NUM_DROPPED,
    'training_free': TRAINING_FREE,
    'merge': {'r': MERGE, 'start': MERGE_START},
    'speed_batch': SPEED_BATCH,
    'num_images': len(rows[0]['dense'][1]),
    'rows': {name: accuracy(rows, name) for name in rows[0]},
    'speed': speed({name: rows[0][name][2] for name in SPEED_ROWS}),
  }
  common.write_entry(OUTPUT, options.name, result)
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  write_table()
