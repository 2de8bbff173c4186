r"""A real backbone under one budget: `lv.compress` against each lever alone.

The backbone, probe, images and scores are those of real_backbone.py. Every row is
at about the same executed operations:

  joint         attention, neurons and blocks (`lv.compress`)
  everything    these and tokens, which merge
  neurons_tokens
  attention     `lv.compress` with that part alone; likewise neurons, blocks
  uniform       all MLPs narrowed alike with a closed form of their own output (the
                idea of CORP, arXiv 2602.05243, for its MLPs)
  merging       a constant number of tokens merged per block (ToMe)
  span          consecutive blocks replaced by one affine map (the idea of TOAST,
                arXiv 2410.04941)
  dropped       consecutive blocks left out, those of smallest angle (arXiv
                2403.17887), with nothing in their place

  python benchmarks/compress.py --name=caltech101 \
    --weights=DIR/dinov2_vits14.safetensors --data=image_folder:DIR/caltech101 \
    --cache=DIR/cache [--levers joint merging] [--speedups 1.25 1.5] [--draws 0] \
    [--after plain refit polish distill]

`--after` says what follows a search: `refit` and `polish` (300 steps) see the same
512 images, `distill` is the same polish on all training images, without
labels: the training of at most ten epochs that a user with images can afford.

A search is kept step by step in the cache, and finished rows in the results, so
that the script resumes where it was stopped. Writes docs/benchmarks/compress.json,
one entry per name.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import common
import real_backbone
from real_backbone import Table

import lambda_vit_jax as lv
from lambda_vit_jax.analysis import memory
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.compression import costs, parts, steps
from lambda_vit_jax.compression.streams import Streams
from lambda_vit_jax.models.build import with_mlp_dims
from lambda_vit_jax.models.edits import narrow_mlps
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training_free import linear_maps, map_fitter

OUTPUT = common.RESULTS / 'compress.json'
SPEEDUPS = (1.1, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0)
PARTS = {
  'joint': ('attention', 'neurons', 'blocks'),
  'everything': ('attention', 'neurons', 'blocks', 'tokens'),
  'neurons_tokens': ('neurons', 'tokens'),
  'attention': ('attention',),
  'neurons': ('neurons',),
  'blocks': ('blocks',),
}


def speedup(dense: Model, model: Model) -> float:
  return dense.macs(executed=True) / model.macs(executed=True)


def search(
  table: Table, lever: str, draw: int, cache: pathlib.Path, target: float
) -> lv.Compression:
  """A path as far as the target, or as the parts allow."""
  dense = table.dense
  most = steps.largest(dense, dense, PARTS[lever], costs.macs)
  path = cache / f'compress_{lever}_{draw}.json'
  begun = None
  if path.exists():
    begun = lv.Compression.from_json(json.loads(path.read_text()))
  return lv.compress(
    dense,
    [table.draw(draw)],
    target_speedup=min(target, 0.999 * most),
    parts=PARTS[lever],
    resume=begun,
    on_step=lambda found: common.write(path, found.to_json()),
  )


def shorter(found: lv.Compression, target: float) -> lv.Compression:
  """A path before the step that reaches the target, which is chosen for it."""
  count = found.steps_to(target) - 1
  growth: dict[tuple[int, str], float] = {}
  for before, step in zip(found.points[:count], found.steps, strict=False):
    for block, kind, score in step.scores:
      growth[block, kind] = score - before.error
  pending = tuple((*part, grown) for part, grown in sorted(growth.items()))
  return dataclasses.replace(
    found, steps=found.steps[:count], pending=pending, models=()
  )


def uniform(table: Table, draw: int, target: float) -> Model | None:
  """All MLPs narrowed to the largest share that reaches the target."""
  dense = table.dense
  hidden = dense.mlp_dims[0]
  for width in range(hidden - 1, 0, -1):
    widths = (width,) * dense.depth
    module = with_mlp_dims(dense.module, widths)
    if speedup(dense, dense.replace(module=module)) >= target:
      return lv.narrow(dense, [table.draw(draw)], widths, target='mlp')
  return None


def merging(table: Table, draw: int, target: float) -> Model | None:
  """The smallest constant merging that reaches the target."""
  del draw
  tokens = table.dense.module.num_tokens
  for number in range(1, tokens // 2):
    model = lv.merge_tokens(table.dense, number)
    if speedup(table.dense, model) >= target:
      return model
  return None


def span(table: Table, draw: int, target: float) -> Model | None:
  """The nearest consecutive blocks as one map, as few as reach the target.

  The map stays in the first of them, without its MLP.
  """
  dense, images = table.dense, [table.draw(draw)]
  for number in range(1, dense.depth):
    first, *others = lv.choose_blocks(dense, images, number)
    shorter = narrow_mlps(lv.drop_blocks(dense, others), {first: ()})
    read = read_images(images, dense)
    size = memory.micro_batch_size(dense.module, read, None)
    streams = Streams(dense, read, size, memory.default_gib())
    wanted = streams.before(first + number)
    _, fitted = map_fitter.fit_map(
      first,
      dense.module,
      linear_maps.map_options(dense, ('token',)),
      zip(streams.before(first), wanted, streams.masks, strict=True),
      {},
      read.placement,
    )
    model = linear_maps.with_maps(shorter, {first: fitted})
    if speedup(dense, model) >= target:
      return model
  return None


def dropped(table: Table, draw: int, target: float) -> Model | None:
  """The network without consecutive blocks, as few as reach the target."""
  dense, images = table.dense, [table.draw(draw)]
  for number in range(1, dense.depth):
    model = lv.drop_blocks(dense, lv.choose_blocks(dense, images, number))
    if speedup(dense, model) >= target:
      return model
  return None


OTHERS: dict[str, Callable[[Table, int, float], Model | None]] = {
  'uniform': uniform,
  'merging': merging,
  'span': span,
  'dropped': dropped,
}


AFTER: dict[str, Callable[[Model, Model, list[Any]], Model]] = {
  'plain': lambda model, dense, images: model,
  'refit': lv.refit,
  'polish': functools.partial(lv.polish, crop_area=1.0),
  'distill': functools.partial(lv.polish, crop_area=1.0),
}
"""What follows a search, on the same images or on all."""


def write_searched(
  table: Table,
  draw: int,
  lever: str,
  options: argparse.Namespace,
  cache: pathlib.Path,
) -> None:
  """One search to the largest speed-up; rows for its path, ended at each."""
  keys = {
    (target, after): f'{draw} {lever} {target:g}{_suffix(after)}'
    for after in options.after
    for target in options.speedups
  }
  if all(table.has(key) for key in keys.values()):
    return
  path = search(table, lever, draw, cache, max(options.speedups))
  seconds = round(sum(step.seconds for step in path.steps))

  @functools.cache
  def end_at(target: float) -> lv.Compression:
    if path.steps_to(target) == len(path.steps):
      return path
    return lv.compress(
      table.dense,
      [table.draw(draw)],
      target_speedup=target,
      parts=PARTS[lever],
      resume=shorter(path, target),
    )

  def compute(target: float, after: str) -> dict[str, Any]:
    if target > path.reached:
      return {'speedup': None}
    found = end_at(target)
    images = [table.everything() if after == 'distill' else table.draw(draw)]
    model = found.model
    if after != 'plain':
      # Fits look at the network in which no tokens merge.
      fitted = AFTER[after](parts.unmerged(model), table.dense, images)
      model = fitted.replace(module=model.module)
    return {
      'speedup': speedup(table.dense, model),
      'error': found.points[-1].error,
      'attention_modes': model.attention_modes,
      'mlp_dims': model.mlp_dims,
      'merge': model.module.merge_counts,
      'kept_blocks': model.block_origins,
      'search_seconds': seconds,
      'evaluations': path.evaluations,
      **table.score(model),
    }

  for which, key in keys.items():
    table.row(key, functools.partial(compute, *which))


def _suffix(after: str) -> str:
  return '' if after == 'plain' else f' {after}'


def write_other(table: Table, draw: int, lever: str, target: float) -> None:
  """The row of another method, where it reaches the speed-up."""

  def compute() -> dict[str, Any]:
    model = OTHERS[lever](table, draw, target)
    if model is None:
      return {'speedup': None}
    return {'speedup': speedup(table.dense, model), **table.score(model)}

  table.row(f'{draw} {lever} {target:g}', compute)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  real_backbone.add_arguments(parser)
  known = [*PARTS, *OTHERS]
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--levers', nargs='+', choices=known, default=known)
  parser.add_argument(
    '--after', nargs='+', choices=AFTER, default=['plain', 'refit']
  )
  parser.add_argument('--speedups', nargs='+', type=float, default=SPEEDUPS)
  options = parser.parse_args()
  table, cache = real_backbone.open_table(options, options.output)
  for draw in options.draws:
    for lever in options.levers:
      if lever in PARTS:
        write_searched(table, draw, lever, options, cache)
        continue
      for target in options.speedups:
        write_other(table, draw, lever, target)


if __name__ == '__main__':
  main()
