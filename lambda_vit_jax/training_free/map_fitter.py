"""Fit the affine maps of several blocks in one pass over the network.

The streams of all images go from block to block: the embedding and every block
run once, whatever the number of chosen blocks. At a chosen block one pass
collects sums of products (see `least_squares`), and the map is their closed
form. When fitting in sequence, a second pass runs the block with its new map,
so that later maps are fitted on the network as modified so far.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis import memory
from lambda_vit_jax.analysis.blocks import BlockRunner, advance
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.folds import (
  FoldMoments,
  fold_sums,
  folds_within,
)
from lambda_vit_jax.training_free.least_squares import (
  AffineMap,
  CrossMoments,
  Sums,
  require_finite,
)


@dataclasses.dataclass(frozen=True)
class BlockFit:
  """How well one block's attention was replaced.

  Attributes:
    block_index: the block.
    ridge: share of the inputs' mean variance.
    residual: share of the attention's variance that the map does not explain,
      on the images that it was fitted on.
    samples: images × tokens.
  """

  block_index: int
  ridge: float
  residual: float
  samples: int


@dataclasses.dataclass(frozen=True)
class MapOptions:
  """How maps are fitted.

  Attributes:
    inputs: of the maps, see `LinearAttention`.
    ridge: share of the inputs' mean variance; None to choose it per block.
    rank: the largest rank of a map, None for no limit.
  """

  inputs: tuple[str, ...]
  ridge: float | None
  rank: int | None


@compilation.jit(
  static_argnames=('block', 'folds', 'inputs', 'with_output', 'placement'),
)
def attention_sums(
  block: EncoderBlock,
  params: Params,
  x: Array,
  mask: Array,
  *,
  folds: int,
  inputs: tuple[str, ...],
  with_output: bool,
  placement: Placement,
) -> tuple[Array | None, list[Sums]]:
  """Runs a block with attention, and sums the products of its fit.

  Args:
    block: static, in mode `full`.
    params: of the block.
    x: the stream `[batch, tokens, embed]`.
    mask: `[batch]`, False for padding.
    folds: image i is in fold i modulo this.
    inputs: of the map; with `class_map`, class tokens are the first group.
    with_output: whether the MLP half runs too.
    placement: of the batch.

  Returns:
    The stream after the block or None; per group of tokens, `least_squares.batch_sums` with a leading
    axis over the folds.
  """
  output, taps = pieces.run_block(block, params, x)
  features = normalize(x, block.norm_eps)
  if 'mean' in inputs:
    mean = features.mean(axis=1, keepdims=True)
    mean = jnp.broadcast_to(mean, features.shape)
    features = jnp.concatenate([features, mean], axis=-1)
  keep = jnp.broadcast_to(mask[:, None], x.shape[:2])
  sums = [
    fold_sums(
      features[:, tokens], taps['attention'][:, tokens], keep[:, tokens], folds
    )
    for tokens in _groups(inputs)
  ]
  sums = jax.lax.with_sharding_constraint(sums, placement.replicated)
  if not with_output:
    return None, sums
  return jax.lax.with_sharding_constraint(output, placement.batch), sums


def _groups(inputs: tuple[str, ...]) -> list[slice]:
  """The tokens of each group."""
  if 'class_map' not in inputs:
    return [slice(None)]
  return [slice(1), slice(1, None)]


class MapFitter:
  """Runs all images through the network, and fits a map per chosen block.

  Attributes:
    fits: how well each block was replaced, so far.
  """

  def __init__(
    self,
    model: Model,
    images: ImageSet,
    layers: Sequence[int],
    options: MapOptions,
    memory_gib: float | None,
  ):
    self.fits: list[BlockFit] = []
    self._images = images
    self._layers = layers
    self._options = options
    self._size = memory.micro_batch_size(model.module, images, memory_gib)
    self._runner = BlockRunner(model, images.placement, options.inputs)

  def run(
    self,
    sequential: Collection[int],
    on_progress: Callable[[int, int], None] | None = None,
  ) -> dict[int, Params]:
    """Fits all layers.

    Args:
      sequential: those whose map replaces the attention in the network that
        later maps are fitted on.
      on_progress: called with blocks done and blocks in all.

    Returns:
      Per layer the parameters of its `attn` in mode `linear`.
    """
    runner = self._runner
    streams, masks = runner.embed_all(self._images, self._size)
    found = {}
    # No later block is read.
    last = max(self._layers, default=-1)
    for index in range(last + 1):
      if index not in self._layers:
        advance(streams, functools.partial(runner.run, index))
      else:
        stays = index not in sequential
        moments = self._moments(index, streams, masks, stays)
        found[index] = self._fit(index, moments)
        if not stays and index < last:
          runner.use_maps({index: found[index]})
          advance(streams, functools.partial(runner.run, index, removed=True))
      jax.block_until_ready(streams)
      if on_progress is not None:
        on_progress(index + 1, last + 1)
    return found

  def _moments(
    self, index: int, streams: list[Any], masks: list[Any], run: bool
  ) -> list[FoldMoments]:
    """Per group of tokens, over all images; runs the block if wanted."""
    found = [FoldMoments() for _ in _groups(self._options.inputs)]
    for position, (x, mask) in enumerate(zip(streams, masks, strict=True)):
      output, sums = attention_sums(
        *self._runner.block(index),
        x,
        mask,
        folds=folds_within(self._size),
        inputs=self._options.inputs,
        with_output=run,
        placement=self._images.placement,
      )
      if run:
        streams[position] = output
      for group, values in zip(found, jax.device_get(sums), strict=True):
        group.add(position, values)
    return found

  def _fit(self, index: int, groups: Sequence[FoldMoments]) -> Params:
    """The parameters of the map that replaces an attention layer."""
    moments = [group.folds for group in groups]
    everything = [
      least_squares.merged(folds) for folds in zip(*moments, strict=True)
    ]
    whole = least_squares.merged(everything)
    require_finite(f'block {index}', whole.in_out)
    ridge, shared = self._solve(everything)
    if len(moments) == 1:
      self._record(index, ridge, [(whole, shared)])
      return self._parameters(shared)
    # The class token is one sample per image, too few for a map of its own:
    # its map is that of all tokens plus a correction, which is penalised.
    first, rest = moments
    _, correction = self._solve([fold.beyond(shared) for fold in first])
    own = self._limited(
      least_squares.merged(first),
      AffineMap(
        shared.kernel + correction.kernel, shared.bias + correction.bias
      ),
    )
    ridge, others = self._solve(rest)
    self._record(
      index,
      ridge,
      [
        (least_squares.merged(first), own),
        (least_squares.merged(rest), others),
      ],
    )
    return self._parameters(others) | self._parameters(own, 'class_')

  def _solve(self, folds: Sequence[CrossMoments]) -> tuple[float, AffineMap]:
    """The ridge, given or chosen, and the map of all folds."""
    ridge = self._options.ridge
    if ridge is None:
      ridge = least_squares.choose_ridge(folds)
    affine = least_squares.solve(
      least_squares.merged(folds), ridge, self._options.rank
    )
    return ridge, affine

  def _limited(self, moments: CrossMoments, affine: AffineMap) -> AffineMap:
    """`affine`, truncated to the rank if there is one."""
    if self._options.rank is None:
      return affine
    return least_squares.truncate(moments, affine, self._options.rank)

  def _record(
    self,
    index: int,
    ridge: float,
    maps: Sequence[tuple[CrossMoments, AffineMap]],
  ) -> None:
    whole = least_squares.merged(moments for moments, _ in maps)
    error = sum(moments.squared_error(affine) for moments, affine in maps)
    total = float(whole.out_out.sum())
    residual = max(error / total, 0.0) if total > 0.0 else 0.0
    self.fits.append(BlockFit(index, ridge, residual, int(whole.count)))

  def _parameters(self, affine: AffineMap, prefix: str = '') -> Params:
    """A map as the parameters of `LinearAttention`."""
    width = self._runner.module.embed_dim
    # numpy, because jax.numpy would compile a program for each shape.
    kernel, bias = (
      np.asarray(leaf, np.float32) for leaf in (affine.kernel, affine.bias)
    )
    found: Params = {
      f'{prefix}linear': {
        'kernel': jax.device_put(kernel[:width]),
        'bias': jax.device_put(bias),
      }
    }
    if 'mean' in self._options.inputs:
      found[f'{prefix}mean'] = {'kernel': jax.device_put(kernel[width:])}
    return found
