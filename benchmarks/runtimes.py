r"""DeiT in JAX, onnxruntime, OpenVINO and PyTorch, dense and pruned, in turn.

  python benchmarks/runtimes.py [--only=base-1] [--rounds=7] [--threads=1]
    [--folder=/tmp/exports] [--output=FILE] [--toy]

A row is a model and a batch size, `SIZE-BATCH`: DeiT tiny, small and base with 1
and 16 images at 224 px. Its programs are timed in turn, A B C A B C …: dense,
without 5 and 6 of 12 attention layers, and for the base size a plan of 1.6 times
fewer operations (5 attention layers gone, MLPs narrowed alike), in each runtime
that is installed and each dtype that it has on this machine. Weights are random, and int8 is
calibrated on noise: speed does not depend on either, and accuracy is measured
by `benchmark.runtimes` of a run instead.

Each row is written to docs/benchmarks/runtimes.json, or to another file for
another processor, when it is measured. The same command again measures the rows
that are left, where device, versions, threads and rounds are the same. `--folder`
keeps the exports for that.
`--toy` tries everything at a small size, and prints.
"""

import argparse
import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import common

OUTPUT = common.RESULTS / 'runtimes.json'
REMOVED = {'dense': (), 'without_5': (0, 1, 3, 4, 6)}
REMOVED['without_6'] = (*REMOVED['without_5'], 9)
ROWS = tuple(
  f'{size}-{batch}' for size in ('tiny', 'small', 'base') for batch in (1, 16)
)
# Images of noise that int8 is calibrated and compared on.
CALIBRATION = 8


def make_models(size: str) -> dict[str, Any]:
  """Dense and pruned models of a row; `toy` for a small one."""
  from lambda_vit_jax.models.edits import prune
  from lambda_vit_jax.models.model import create_model

  if size == 'toy':
    dense = create_model('vit_nano_patch2_8')
    return {'dense': dense, 'without_1': prune(dense, (1,))}
  dense = create_model(f'deit_{size}_patch16_224')
  found = {
    name: prune(dense, layers) if layers else dense
    for name, layers in REMOVED.items()
  }
  if size == 'base':
    found['plan_1.6'] = common.planned(dense, REMOVED['without_5'])
  return found


def export_all(
  models: dict[str, Any], folder: pathlib.Path, names: Sequence[str]
) -> None:
  """Writes what the runtimes open: a folder per model and kind of file."""
  import numpy as np

  from lambda_vit_jax.exporters import export, runtimes

  found = [runtimes.RUNTIMES[name] for name in names]
  formats = {
    'float32': {runtime.format for runtime in found},
    'int8': {runtime.format for runtime in found if runtime.calibrated},
  }
  for name, model in models.items():
    module = model.module
    shape = (CALIBRATION, *module.image_size, module.in_chans)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for dtype, wanted in formats.items():
      place = folder / f'{name}_{dtype}'
      if wanted and not (place / 'model.json').exists():
        print(f'export {place}', flush=True)
        export.export(
          model,
          place,
          formats=wanted,
          dtype=dtype,
          check_images=images,
          int8_arithmetic='static:1' if dtype == 'int8' else 'weights',
        )


def open_all(
  models: dict[str, Any], folder: pathlib.Path, names: Sequence[str]
) -> dict[str, Callable[..., Any]]:
  """Programs by `RUNTIME DTYPE MODEL`; PyTorch's dense one is the first."""
  from lambda_vit_jax.exporters import runtimes

  programs: dict[str, Callable[..., Any]] = {}
  for name in sorted(names, key=lambda name: name != 'torch'):
    for dtype in runtimes.RUNTIMES[name].dtypes():
      calibrated = dtype == 'int8' and runtimes.RUNTIMES[name].calibrated
      kind = 'int8' if calibrated else 'float32'
      for model in models:
        programs[f'{name} {dtype} {model}'] = runtimes.open_export(
          name, folder / f'{model}_{kind}', dtype
        )
  return programs


def measure_row(
  models: dict[str, Any],
  programs: dict[str, Callable[..., Any]],
  batch: int,
  rounds: int,
) -> dict[str, Any]:
  """Times the programs of a row.

  Returns:
    By program its speed over the first; by runtime and dtype the speed of each
    pruned model over dense; and the ratios of executed operations.
  """
  import numpy as np

  from lambda_vit_jax.evaluation import programs as measures
  from lambda_vit_jax.evaluation import timing

  module = models['dense'].module
  shape = (batch, *module.image_size, module.in_chans)
  images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
  calls = {
    name: functools.partial(program, images)
    for name, program in programs.items()
  }
  seconds = timing.time_in_turn(calls, rounds)
  first = next(iter(seconds))
  found = {
    name: measures.speed(batch, times, seconds[first])
    for name, times in seconds.items()
  }
  pruned = [name for name in models if name != 'dense']
  settings = dict.fromkeys(name.rpartition(' ')[0] for name in programs)
  return {
    'first': first,
    'programs': found,
    'over_dense': {
      setting: {
        name: measures.speed(
          batch, seconds[f'{setting} {name}'], seconds[f'{setting} dense']
        )['speedup']
        for name in pruned
      }
      for setting in settings
    },
    'operations_over_dense': {
      name: models['dense'].macs(executed=True)
      / models[name].macs(executed=True)
      for name in pruned
    },
  }


def run_row(
  row: str, folder: pathlib.Path, rounds: int
) -> tuple[dict[str, Any], list[str]]:
  """Measures one row, with what is not installed in lines of its own."""
  from lambda_vit_jax.exporters import runtimes

  size, batch = row.rsplit('-', 1)
  lines = [
    line for name in runtimes.RUNTIMES if (line := runtimes.missing(name))
  ]
  names = [name for name in runtimes.RUNTIMES if not runtimes.missing(name)]
  models = make_models(size)
  export_all(models, folder / size, names)
  programs = open_all(models, folder / size, names)
  return measure_row(models, programs, int(batch), rounds), lines


def use_cores(count: int) -> None:
  """Keeps this process, and what it starts, to a number of cores."""
  cores = sorted(os.sched_getaffinity(0))[:count]
  os.sched_setaffinity(0, cores)
  # PyTorch and OpenMP would start as many threads as the machine has cores.
  os.environ['OMP_NUM_THREADS'] = str(count)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='')
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--threads', type=int, default=1)
  parser.add_argument('--folder', default='')
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--toy', action='store_true')
  options = parser.parse_args()
  use_cores(options.threads)

  import importlib.metadata

  from lambda_vit_jax.exporters import runtimes
  from lambda_vit_jax.runtime import startup

  startup.keep_memory()
  startup.use_cache()
  now = common.provenance() | {
    'threads': options.threads,
    'rounds': options.rounds,
  }
  for runtime in runtimes.RUNTIMES.values():
    for package in runtime.packages:
      if runtimes.is_installed(package):
        now['versions'][package] = importlib.metadata.version(package)
  results = {} if options.toy else common.read(options.output)
  same = ('device', 'versions', 'threads', 'rounds')
  if any(results.get(key) != now[key] for key in same):
    results = now
  found = results.setdefault('rows', {})
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(options.folder or scratch)
    for row in ('toy-2',) if options.toy else ROWS:
      if options.only not in row or row in found:
        continue
      found[row], results['not_installed'] = run_row(
        row, folder, options.rounds
      )
      for name, speed in found[row]['programs'].items():
        rate = speed['images_per_second']['median']
        print(f'{row} {name:<32} {rate:8.2f} images/s {speed["speedup"]:6.2f}')
      if not options.toy:
        common.write(options.output, results)
  return 0


if __name__ == '__main__':
  sys.exit(main())
