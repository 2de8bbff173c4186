r"""Time to fit affine maps or MLPs, relative to evaluating the same images.

  python benchmarks/training_free_cost.py [--images 512] [--ways auto]

DeiT-S at 224 pixels, 5 of 12 blocks, random weights and images, programs
compiled in advance. `auto` chooses the inputs of each map. `refit` removes the
attention layers and fits the MLPs of all blocks from the first of them on. `drop`
chooses 4 blocks by the angle between their input and output, drops those in the
middle instead (with random weights the choice is meaningless), and fits the MLPs
of the block before and of all blocks after. `--ways` measures some of them; the
evaluation always belongs to the same run. Writes
docs/benchmarks/training_free_cost.json, all of it anew.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import numpy as np

from lambda_vit_jax.models.edits import drop_blocks, prune
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.training_free.block_spans import choose_blocks
from lambda_vit_jax.training_free.linear_maps import linearize
from lambda_vit_jax.training_free.mlp_refit import refit

VARIANT = 'deit_small_patch16_224'
LAYERS = (0, 2, 4, 6, 8)
DROPPED = (5, 6, 7, 8)
BATCH = 16
OUTPUT = common.RESULTS / 'training_free_cost.json'


def seconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument('--ways', nargs='+', default=[])
  options = parser.parse_args()
  model = create_model(VARIANT)
  shape = (options.images, *model.module.image_size, 3)
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]

  def evaluate(some: list[np.ndarray]) -> Any:
    return [model(batch) for batch in some]

  def fit(some: list[np.ndarray], sequential: bool, inputs: str) -> Any:
    return linearize(
      model, some, LAYERS, sequential=sequential, inputs=inputs
    ).params

  def refit_mlps(some: list[np.ndarray]) -> Any:
    return refit(prune(model, LAYERS, 'absent'), model, some).params

  def drop(some: list[np.ndarray]) -> Any:
    choose_blocks(model, some, len(DROPPED))
    return refit(drop_blocks(model, DROPPED), model, some).params

  ways = {
    'evaluate': evaluate,
    'sequential': lambda some: fit(some, True, 'token'),
    'at_once': lambda some: fit(some, False, 'token'),
    'auto': lambda some: fit(some, True, 'auto'),
    'refit': refit_mlps,
    'drop': drop,
  }
  if options.ways:
    ways = {name: ways[name] for name in ('evaluate', *options.ways)}
  times: dict[str, list[float]] = {name: [] for name in ways}
  # Few images, and enough samples for the inputs of every map.
  for way in ways.values():
    way(batches[:2])
  for _ in range(options.repeats):
    for name, way in ways.items():
      times[name].append(seconds(lambda way=way: way(batches)))
      print(name, times[name][-1], flush=True)
  best = {name: min(values) for name, values in times.items()}
  result = {
    'variant': VARIANT,
    'layers': LAYERS,
    'dropped': DROPPED,
    'num_images': options.images,
    'seconds': times,
    'ratio': {
      name: value / best['evaluate']
      for name, value in best.items()
      if name != 'evaluate'
    },
    **common.provenance(),
  }
  common.write(OUTPUT, result)
  print(result['ratio'])


if __name__ == '__main__':
  main()
