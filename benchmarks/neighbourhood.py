r"""Accuracy of training-free maps with neighbouring tokens, and later norms, added.

A trained dense model, 512 unlabeled images, 3 and 5 attention layers chosen by
three criteria, maps fitted in sequence, accuracy over all test images. Beside
the inputs that `linearize` offers, maps read a token's neighbours on the grid
of patches, with zeros outside:

  depthwise   y = base + Σ_k w_k ∘ n(x_k), nine weights a channel with the
              token's own, which `base` holds
  separable   y = base + Σ_k w_k ∘ (B n(x_k)); w and B in turns
  local mean  y = base + B (mean of n(x) over the 3 x 3 tokens that exist)
  all eight   y = base + Σ_k B_k n(x_k), the most that neighbours explain

`base` is refitted with each, all together by least squares. Class tokens have
no neighbours. Every ridge is chosen by held-out quarters of the images. After
all maps are fitted, `re-centred` corrects scale and bias of every later norm,
block by block, so that each channel has the mean and variance of the dense
network. Further rows replace whole blocks with maps, as TOAST does (arXiv
2410.04941); of all spans of a length, the one with the best test accuracy is
taken, which favours TOAST.

  python benchmarks/neighbourhood.py --name=fashion_mnist_patch4 \
    --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist_patch4 \
    --config.model.variant=vit_mini_patch4_28 --config.batch_size=64 \
    --config.data.train_images=10000 --config.data.holdout_images=512 \
    --config.pretrain.warmup_steps=1ep --config.pretrain.steps=18ep

The workdir needs a finished `pretrain` with the same flags. Writes its entry of
docs/benchmarks/neighbourhood.json, row by row. Takes 20 minutes on one CPU
core.
"""

from collections.abc import Sequence
from typing import Any

import block_maps
import common
import jax
import numpy as np
from neighbour_maps import FOLDS, NEIGHBOURHOODS, block_sums, fit_maps
from stepwise import Maps, Network, Table

from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.least_squares import AffineMap, CrossMoments

OUTPUT = common.RESULTS / 'neighbourhood.json'
# The options of `nose.select`, and how many layers are chosen.
CHOICES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
  'affine': ({'criterion': 'affine'}, (5, 3)),
  'cosine': ({'criterion': 'cosine'}, (5, 3)),
  'transfer_entropy, linear trial': (
    {'criterion': 'transfer_entropy', 'trial': 'linear'},
    (5,),
  ),
}
BASES = {
  'token+mean+class': ('token', 'mean', 'class_map'),
  'token+mean': ('token', 'mean'),
  'token': ('token',),
}


def fit_in_sequence(
  network: Network,
  x: Array,
  layers: Sequence[int],
  inputs: Sequence[str],
  neighbourhood: str,
) -> tuple[Maps, list[float]]:
  """Fits the maps of all layers; returns them and each residual variance share.

  Args:
    network: the dense one.
    x: its stream before the first of the layers.
    layers: whose attention is replaced.
    inputs: of the base.
    neighbourhood: of `NEIGHBOURHOODS`.
  """
  maps: dict[int, tuple[AffineMap, AffineMap]] = {}
  residuals = []
  for index in range(min(layers), max(layers) + 1):
    if index in layers:
      params = pieces.block_params(network.params, index)
      sums = block_sums(network.block(index), params, x, network.grid)
      groups = [
        [
          CrossMoments.from_sums(tuple(leaf[fold] for leaf in group))
          for fold in range(FOLDS)
        ]
        for group in jax.device_get(sums)
      ]
      maps[index] = fit_maps(groups, inputs, neighbourhood)
      wholes = [least_squares.merged(group) for group in groups]
      error = sum(
        whole.squared_error(affine)
        for whole, affine in zip(wholes, maps[index], strict=True)
      )
      residuals.append(
        error / float(least_squares.merged(wholes).out_out.sum())
      )
    x = network.step(index, x, maps)[1]
  return maps, residuals


def corrected(norm: Params, x: Array, dense: Array, epsilon: float) -> Params:
  """Scale and bias that match the norm of `x` to that of `dense` in moments."""
  here, there = (np.asarray(normalize(v, epsilon)) for v in (x, dense))
  axes = tuple(range(here.ndim - 1))
  scale = norm['scale'] * there.std(axes) / here.std(axes)
  centre = norm['scale'] * there.mean(axes) + norm['bias']
  return {'scale': scale, 'bias': centre - scale * here.mean(axes)}


def recentre(network: Network, x: Array, start: int, maps: Maps) -> Network:
  """The network with corrected norms after the first map.

  Moments are over all tokens, or the readout's tokens where only they are used.

  Args:
    network: the dense one.
    x: its stream before block `start`.
    start: the first block with a map.
    maps: of the blocks that have maps.
  """
  module = network.model.module
  read = module.read_tokens
  params = dict(network.params)
  found = Network(network.model, params)
  dense = x
  for index in range(start, network.depth):
    name, epsilon = modes_lib.block_name(index), module.norm_eps[index]
    block = dict(params[name])
    if index not in maps:
      block['norm1'] = corrected(block['norm1'], x, dense, epsilon)
      params[name] = block
    middle, _ = found.step(index, x, maps)
    dense_middle, dense = network.step(index, dense, {})
    seen = slice(read) if index == network.depth - 1 else slice(None)
    block['norm2'] = corrected(
      block['norm2'], middle[:, seen], dense_middle[:, seen], epsilon
    )
    params[name] = block
    x = found.step(index, x, maps)[1]
  params['norm'] = corrected(
    params['norm'], x[:, :read], dense[:, :read], module.norm_eps[-1]
  )
  return found


def neighbour_macs(model: Model, neighbourhood: str) -> int:
  """Multiply-accumulates per image that one map's neighbourhood adds."""
  rows, columns = model.module.grid_size
  width = model.module.embed_dim
  each = {
    'none': 0,
    'depthwise': 8 * width,
    'separable': width**2 + 8 * width,
    'local mean': width**2,
    'all eight': 8 * width**2,
  }[neighbourhood]
  return rows * columns * each


def write_set(table: Table, title: str, layers: Sequence[int]) -> None:
  """All rows of one choice of layers."""
  model, network, start = table.model, table.network, min(layers)
  x = table.holdout(start)
  skipped: Maps = dict.fromkeys(layers)

  def with_modes(mode: Any, inputs: tuple[str, ...] = ('token',)) -> int:
    modes = modes_lib.modes_without(layers, model.attention_modes, mode)
    module = model.module.clone(attention_modes=modes, linear_inputs=inputs)
    return model.replace(module=module).macs()

  def recentred(key: str, maps: Maps, macs: int) -> None:
    table.row(
      f'{key}, re-centred',
      recentre(network, x, start, maps),
      start,
      maps,
      key,
      macs=macs,
    )

  macs = with_modes('absent')
  table.row(f'{title} skip', network, start, skipped, macs=macs)
  recentred(f'{title} skip', skipped, macs)
  for neighbourhood in NEIGHBOURHOODS:
    for base, inputs in BASES.items():
      if neighbourhood != 'none' and base == 'token+mean':
        continue
      maps, residuals = fit_in_sequence(
        network, x, layers, inputs, neighbourhood
      )
      macs = with_modes('linear', inputs) + len(layers) * neighbour_macs(
        model, neighbourhood
      )
      bare = f'{title} {base}'
      alone = neighbourhood == 'none'
      key = bare if alone else f'{bare}, {neighbourhood}'
      table.row(
        key,
        network,
        start,
        maps,
        None if alone else bare,
        macs=macs,
        residual=[round(share, 4) for share in residuals],
      )
      if alone:
        recentred(key, maps, macs)


def write_block_maps(table: Table) -> None:
  """Whole blocks replaced: the best span of every length, and all others."""
  network, model = table.network, table.model
  module = model.module
  tokens, width = module.num_tokens, module.embed_dim
  hidden = int(width * module.mlp_ratio)
  each = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
  for length in block_maps.SPANS:
    top1 = {}
    for first in range(network.depth - length + 1):
      end = first + length
      affine = block_maps.fit(
        np.asarray(table.holdout(first)), np.asarray(table.holdout(end))
      )
      scored = table.score(
        [
          network.logits(x @ affine[:-1] + affine[-1], end, {})
          for x in table.stream(first)
        ]
      )
      top1[first] = scored['top1']
    best = max(top1, key=top1.__getitem__)
    table.entry['rows'][f'{length} whole blocks'] = {
      'top1': top1[best],
      'blocks': list(range(best, best + length)),
      'macs': model.macs() - length * each + tokens * width**2,
      'by_first': top1,
    }
    table.write()
    print(length, best, top1[best], flush=True)


def main() -> None:
  table = Table(*common.named_run(__doc__), OUTPUT)
  table.row('dense', table.network, 0, {}, macs=table.model.macs())
  for criterion, (choice, counts) in CHOICES.items():
    order = nose(
      table.model,
      table.batches,
      num_layers=max(counts),
      resamples=0,
      **choice,
    ).order
    table.entry['orders'][criterion] = list(order)
    for count in counts:
      write_set(table, f'{criterion} {count}', order[:count])
    if criterion == 'affine':
      write_block_maps(table)


if __name__ == '__main__':
  main()
