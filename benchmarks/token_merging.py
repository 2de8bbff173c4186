r"""Speed and multiply-accumulates against the number r of merged tokens.

  python benchmarks/token_merging.py [--rounds=7] [--batch=16] [--r 0 8 14 24 28]
  python benchmarks/token_merging.py --segment=linear --image_size=512 \
    --batch=2 --rounds=5 --r 0 16 32 64 80

DeiT-S, by default at 224 pixels, float32, random weights and images: the dense
network, and the paper's larger pruned set with r tokens merged after each
attention layer from block 1 on. Speed does not depend on the weights; accuracy
is not measured here. Each round calls every program once, A B C A B C …; ratios
to r = 0 are within a round. Writes its entry of
docs/benchmarks/token_merging.json.
"""

import argparse
import pathlib
from typing import Any

import common
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.evaluation import benchmark
from lambda_vit_jax.models.adapt import with_decoder
from lambda_vit_jax.models.decoders import KINDS, Decoder, spread_blocks
from lambda_vit_jax.models.edits import merge_tokens, prune
from lambda_vit_jax.models.model import create_model

REMOVED = (0, 2, 4, 6)
START = 1
# Of ADE20k.
CLASSES = 150
OUTPUT = common.RESULTS / 'token_merging.json'


def time_programs(options: argparse.Namespace) -> dict[str, Any]:
  """Builds, compiles and times every program."""
  dense = create_model(options.variant, image_size=options.image_size)
  if options.segment:
    blocks = spread_blocks(dense.depth) if options.segment == 'upernet' else ()
    dense = with_decoder(dense, Decoder(options.segment, blocks), CLASSES)
  pruned = prune(dense, options.removed)
  models = {'dense': dense} | {
    f'r={r}': merge_tokens(pruned, r, START) for r in options.r
  }
  module = dense.module
  shape = (options.batch, *module.image_size, module.in_chans)
  images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  calls, rows = {}, {}
  for name, model in models.items():
    calls[name], sizes = benchmark.compile_model(model, images)
    counts = model.module.merge_counts
    rows[name] = sizes | {
      'merged': counts,
      'tokens_left': module.num_tokens - sum(counts),
    }
    print(name, rows[name]['macs_executed'], counts, flush=True)
  seconds = benchmark.time_in_turn(calls, options.rounds)
  first = f'r={options.r[0]}'
  for name, row in rows.items():
    times = seconds[name]
    row['images_per_second'] = common.spread([options.batch / t for t in times])
    row['over_first'] = common.spread(
      [a / b for a, b in zip(seconds[first], times, strict=True)]
    )
    row['macs_ratio'] = rows[first]['macs_executed'] / row['macs_executed']
    print(name, row['images_per_second'], flush=True)
  return {
    'variant': options.variant,
    'image_size': options.image_size,
    'segment': options.segment,
    'removed': options.removed,
    'merge_start': START,
    'batch_size': options.batch,
    'rounds': options.rounds,
    'seconds': seconds,
    'rows': rows,
    **common.provenance(),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--batch', type=int, default=16)
  # The others are compared with the first.
  parser.add_argument('--r', type=int, nargs='+', default=[0, 8, 14, 24, 28])
  parser.add_argument('--variant', default='deit_small_patch16_224')
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--segment', choices=KINDS, help='with this decoder')
  parser.add_argument('--removed', type=int, nargs='+', default=REMOVED)
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  options = parser.parse_args()
  name = options.segment or 'classify'
  common.write_entry(options.output, name, time_programs(options))


if __name__ == '__main__':
  main()
