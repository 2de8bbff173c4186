"""Accuracy, size and speed of int8 against float32, on the digits.

  python benchmarks/int8.py [--batch_size=16] [--rounds=15]

The dense model that ships with the package, as it is and quantized in both ways
(`lambda_vit_jax.models.quantization`): top-1, loss and the largest difference
of a logit over all test images, then images per second in turn, A B C A B C ….
Figures are medians over the rounds; a ratio is the median of the rounds'
ratios, with their extremes. Writes docs/benchmarks/int8.json.
"""

import argparse
import json
from typing import Any

import common
import numpy as np

from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.data import pipeline
from lambda_vit_jax.data.sources import registry
from lambda_vit_jax.evaluation import accuracy, benchmark
from lambda_vit_jax.models.edits import quantize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import sharding

OUTPUT = common.RESULTS / 'int8.json'
BATCH = 40


def score(models: dict[str, Model]) -> dict[str, dict[str, Any]]:
  """Accuracy of each, and how far its logits are from the first one's."""
  dense = models['float32']
  dataset = registry.open_dataset('digits', None)
  batches = list(
    pipeline.eval_batches(
      dataset.test,
      np.arange(len(dataset.test)),
      dense.preprocessing,
      pipeline.Loading(BATCH),
    )
  )
  mesh = sharding.make_mesh(1)
  rows: dict[str, dict[str, Any]] = {}
  for name, model in models.items():
    rows[name] = dict(accuracy.evaluate_model(model, batches, mesh))
    rows[name]['largest_difference'] = max(
      float(np.abs(model(b['image']) - dense(b['image'])).max())
      for b in batches
    )
  return rows


def time_models(models: dict[str, Model], batch_size: int, rounds: int) -> Any:
  """Bytes and images per second of each."""
  module = models['float32'].module
  shape = (batch_size, *module.image_size, module.in_chans)
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  calls, rows = {}, {}
  for name, model in models.items():
    calls[name], rows[name] = benchmark.compile_model(model, images)
  seconds = benchmark.time_in_turn(calls, rounds)
  first = np.asarray(seconds['float32'])
  for name, row in rows.items():
    row['images_per_second'] = common.spread(
      batch_size / np.asarray(seconds[name])
    )
    row['over_float32'] = common.spread(first / np.asarray(seconds[name]))
  return rows


def main() -> None:
  """Scores, measures and writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=15)
  options = parser.parse_args()
  dense = load_pretrained('builtin:vit_mini_patch2_8_digits')
  models = {
    'float32': dense,
    'int8 weights': quantize(dense, 'weights'),
    'int8 dynamic': quantize(dense, 'dynamic'),
  }
  scores = score(models)
  timed = time_models(models, options.batch_size, options.rounds)
  result = {
    **common.provenance(),
    'num_images': scores['float32']['num_images'],
    'batch_size': options.batch_size,
    'rounds': options.rounds,
    'rows': {name: scores[name] | timed[name] for name in models},
  }
  common.write(OUTPUT, result)
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  main()
