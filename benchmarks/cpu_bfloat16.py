"""Bfloat16 in XLA on a CPU: products and a network, against float32, in turn.

  python benchmarks/cpu_bfloat16.py [--rounds=9] [--batch=4]

On one thread: matrix products of DeiT-S, and its forward pass in float32, in
bfloat16, and with parameters in bfloat16 but the arithmetic in float32, which is
what this package does on CPUs. If XLA used the processor's instructions for
bfloat16 (`instructions`), the products would be several times as fast as in
float32. Writes docs/benchmarks/cpu_bfloat16.json.
"""

import argparse
import functools
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import common

# What a processor may have for bfloat16.
KNOWN = ('amx_bf16', 'avx512_bf16', 'bf16')
SHAPES = ((788, 384, 1536), (788, 1536, 384), (2048, 2048, 2048))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--batch', type=int, default=4)
  options = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

  import jax
  import jax.numpy as jnp
  import numpy as np

  from lambda_vit_jax.core import processor
  from lambda_vit_jax.evaluation import programs, timing
  from lambda_vit_jax.models.build import forward
  from lambda_vit_jax.models.model import create_model

  calls: dict[str, Any] = {}
  for shape in SHAPES:
    for dtype in ('float32', 'bfloat16'):
      left, right = jnp.ones(shape[:2], dtype), jnp.ones(shape[1:], dtype)
      name = f'{" x ".join(map(str, shape))} {dtype}'
      calls[name] = functools.partial(jax.jit(jnp.matmul), left, right)
  model = create_model('deit_small_patch16_224')
  half = model.module.clone(dtype=jnp.bfloat16)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
  images = jnp.asarray(
    np.random.default_rng(0).normal(size=(options.batch, 224, 224, 3)),
    jnp.float32,
  )
  for name, module, tree in (
    ('float32', model.module, model.params),
    ('bfloat16', half, params),
    ('bfloat16, computed in float32', model.module, params),
  ):
    calls[name] = functools.partial(forward, module, tree, images)
  seconds = timing.time_in_turn(calls, options.rounds)
  found = common.provenance() | {
    'instructions': [i for i in KNOWN if i in processor.instructions()],
    'threads': 1,
    'batch_size': options.batch,
    'rounds': options.rounds,
    'products': {
      ' x '.join(map(str, shape)): {
        dtype: common.spread(
          2 * shape[0] * shape[1] * shape[2] / t / 1e9
          for t in seconds[f'{" x ".join(map(str, shape))} {dtype}']
        )
        for dtype in ('float32', 'bfloat16')
      }
      for shape in SHAPES
    },
    'network': {
      name: programs.speed(options.batch, seconds[name], seconds['float32'])
      for name in calls
      if not name[0].isdigit()
    },
  }
  common.write(common.RESULTS / 'cpu_bfloat16.json', found)
  print(found['products'], found['network'])


if __name__ == '__main__':
  main()
