r"""How cost grows with tokens, depth, batch and devices.

  python benchmarks/scaling.py [--rounds=5]

DeiT-T, float32, random weights, dense and with attention removed from every
third block (4 of 12). Tokens: 224, 384 and 512 pixels, 4 images. Depth: 6 to 24
blocks. Batch: 1 to 32 images. The programs of one series take turns; growth is
the median of the rounds' ratios to the first of the series. Devices: plain
training steps on virtual CPU devices, each count in its own process, with the
same 16 images; with no more cores than devices this shows the cost of splitting
a batch, not the gain. Writes docs/benchmarks/scaling.json.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

import common

OUTPUT = common.RESULTS / 'scaling.json'
VARIANT = 'deit_tiny_patch16_224'
SERIES: dict[str, tuple[dict[str, int], ...]] = {
  'tokens': tuple({'pixels': size, 'batch': 4} for size in (224, 384, 512)),
  'depth': tuple({'depth': depth, 'batch': 4} for depth in (6, 12, 24)),
  'batch': tuple({'batch': size} for size in (1, 4, 16, 32)),
}
DEVICES = (1, 2, 4)

_STEPS = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from lambda_vit_jax.runtime import startup
startup.keep_memory()
import timm_speed
import jax
calls, _ = timm_speed.jax_training(sys.argv[2], 16)
times = []
for _ in range(2 + int(sys.argv[3])):
  start = time.perf_counter()
  jax.block_until_ready(calls['dense']())
  times.append(time.perf_counter() - start)
print(json.dumps(times[2:]))
"""


def make_model(depth: int, pixels: int) -> Any:
  """A DeiT-T of another depth or resolution."""
  from lambda_vit_jax.models.build import init_params, make_module
  from lambda_vit_jax.models.model import Model
  from lambda_vit_jax.models.variants import VARIANTS

  variant = dataclasses.replace(VARIANTS[VARIANT], depth=depth)
  module = make_module(variant, image_size=pixels)
  return Model(
    module=module,
    params=init_params(module),
    variant=VARIANT,
    preprocessing=variant.preprocessing(module.image_size),
  )


def measure_series(
  points: tuple[dict[str, int], ...], rounds: int
) -> list[dict[str, Any]]:
  """A row per point: seconds, and their growth and that of the operations."""
  import jax.numpy as jnp
  import numpy as np

  from lambda_vit_jax.evaluation import benchmark
  from lambda_vit_jax.models.edits import prune

  calls, rows = {}, []
  for index, point in enumerate(points):
    point = {'depth': 12, 'pixels': 224, 'batch': 4} | point
    dense = make_model(point['depth'], point['pixels'])
    models = {
      'dense': dense,
      'pruned': prune(dense, range(0, point['depth'], 3)),
    }
    shape = (point['batch'], point['pixels'], point['pixels'], 3)
    images = jnp.asarray(
      np.random.default_rng(0).normal(size=shape), jnp.float32
    )
    row: dict[str, Any] = {**point, 'tokens': dense.module.num_tokens}
    for name, model in models.items():
      calls[name, index], sizes = benchmark.compile_model(model, images)
      row[name] = {
        key: sizes[key]
        for key in ('macs_executed', 'temp_bytes', 'compile_seconds')
      }
    rows.append(row)
  seconds = benchmark.time_in_turn(
    {f'{name} {index}': call for (name, index), call in calls.items()}, rounds
  )
  for index, row in enumerate(rows):
    for name in ('dense', 'pruned'):
      own, first = seconds[f'{name} {index}'], seconds[f'{name} 0']
      macs = row[name]['macs_executed'] * row['batch']
      of_first = rows[0][name]['macs_executed'] * rows[0]['batch']
      row[name] |= {
        'seconds': statistics.median(own),
        'growth': statistics.median(
          a / b for a, b in zip(own, first, strict=True)
        ),
        'macs_growth': macs / of_first,
      }
    print(row, flush=True)
  return rows


def measure_devices(rounds: int) -> list[dict[str, Any]]:
  """Seconds of a training step on each number of virtual CPU devices."""
  rows = []
  for count in DEVICES:
    flags = f'--xla_force_host_platform_device_count={count}'
    done = subprocess.run(
      [
        sys.executable,
        '-c',
        _STEPS,
        str(pathlib.Path(__file__).parent),
        VARIANT,
        str(rounds),
      ],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ
      | {'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}'},
    )
    times = json.loads(done.stdout.splitlines()[-1])
    rows.append(
      {
        'devices': count,
        'seconds': statistics.median(times),
        'min': min(times),
        'max': max(times),
      }
    )
    print(rows[-1], flush=True)
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  options = parser.parse_args()

  from lambda_vit_jax.runtime import startup

  startup.keep_memory()
  found: dict[str, Any] = {
    name: measure_series(points, options.rounds)
    for name, points in SERIES.items()
  }
  found['devices'] = measure_devices(options.rounds)
  common.write(
    OUTPUT,
    found
    | {
      'rounds': options.rounds,
      **common.provenance(),
    },
  )


if __name__ == '__main__':
  main()
