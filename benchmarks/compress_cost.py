r"""Time of a search over all parts, relative to evaluating the same images.

  python benchmarks/compress_cost.py [--images 512] [--speedup 1.5]

DeiT-S at 224 pixels, random weights and images. Programs are compiled in advance
by a search on few images. With random weights the choice is meaningless, but not
what it costs: how many parts a step scores again may differ. Writes
docs/benchmarks/compress_cost.json, one entry per number of images.
"""

import argparse
import collections
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import numpy as np

import lambda_vit_jax as lv

VARIANT = 'deit_small_patch16_224'
BATCH = 16
# Enough to fit and to score.
WARM_UP = 48
OUTPUT = common.RESULTS / 'compress_cost.json'


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
  """How long a call takes, and what it returns."""
  start = time.perf_counter()
  found = call()
  return time.perf_counter() - start, found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=512)
  parser.add_argument('--speedup', type=float, default=1.5)
  parser.add_argument('--variant', default=VARIANT)
  parser.add_argument('--cold', action='store_true', help='compile as well')
  options = parser.parse_args()
  model = lv.create_model(options.variant)
  shape = (options.images, *model.module.image_size, 3)
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]

  def evaluate() -> Any:
    return jax.block_until_ready([model(batch) for batch in batches])

  def search(some: np.ndarray) -> lv.Compression:
    return lv.compress(
      model, [some], target_speedup=options.speedup, warn=lambda line: None
    )

  model(batches[0])
  once, _ = seconds(evaluate)
  if not options.cold:
    search(images[:WARM_UP])
  whole, found = seconds(lambda: search(images))
  result = {
    **common.provenance(),
    'variant': options.variant,
    'speedup': options.speedup,
    'reached': found.reached,
    'steps': len(found.steps),
    'parts': dict(collections.Counter(step.part for step in found.steps)),
    'scored': sum(len(step.scores) for step in found.steps),
    'evaluation_seconds': round(once, 2),
    'search_seconds': round(whole, 2),
    'times_one_evaluation': round(whole / once, 1),
    # Of blocks alone, without the sums and solutions of fits.
    'blocks_run': round(found.evaluations, 1),
    'compiled': options.cold,
  }
  common.write_entry(OUTPUT, str(options.images), result)
  print(result)


if __name__ == '__main__':
  main()
