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
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.cross_validation import FoldMoments, fold_sums
from lambda_vit_jax.training_free.least_squares import AffineMap, CrossMoments


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


@compilation.jit(
  static_argnames=('block', 'inputs', 'with_output', 'placement')
)
def attention_sums(
  block: EncoderBlock,
  params: Params,
  x: Array,
  mask: Array,
  *,
  inputs: tuple[str, ...],
  with_output: bool,
  placement: Placement,
) -> tuple[Array | None, list[least_squares.Sums]]:
  """Runs a block in mode `full`, and sums the products of its fit.

  Returns:
    The stream after the block, or None without `with_output`; per group of
    tokens, `folds.fold_sums`. With `class_map`, class tokens are the first
    group.
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
      features[:, tokens], taps['attention'][:, tokens], keep[:, tokens]
    )
    for tokens in _groups(inputs)
  ]
  sums = jax.lax.with_sharding_constraint(sums, placement.replicated)
  if not with_output:
    return None, sums
  return jax.lax.with_sharding_constraint(output, placement.batch), sums


def _groups(inputs: tuple[str, ...]) -> list[slice]:
  """The tokens of each group."""
  own = 'class_map' in inputs
  return [slice(1), slice(1, None)] if own else [slice(None)]


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
    inputs: tuple[str, ...],
    ridge: float | None = None,
    rank: int | None = None,
    memory_gib: float | None = None,
  ):
    """Checks the number of samples; for the arguments, see `linearize`.

    With `ridge=None` it is chosen per block.

    Raises:
      DataError: fewer samples (images × tokens) than inputs of the map.
    """
    tokens, width = model.module.num_tokens, model.module.embed_dim
    width *= 1 + ('mean' in inputs)
    if images.total * tokens <= width:
      raise DataError(
        f'{images.total} images of {tokens} tokens are {images.total * tokens} '
        f'samples, too few for an affine map of {width} inputs; give at least '
        f'{width // tokens + 1} images, better 512'
      )
    self.fits: list[BlockFit] = []
    self._images = images
    self._layers = layers
    self._inputs = inputs
    self._ridge = ridge
    self._rank = rank
    self._size = memory.micro_batch_size(model.module, images, memory_gib)
    self._runner = BlockRunner(model, images.placement, inputs)

  def run(
    self,
    sequential: Collection[int],
    on_progress: Callable[[int, int], None] | None = None,
  ) -> dict[int, Params]:
    """Fits all layers; those in `sequential` on each other's maps.

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
    found = [FoldMoments() for _ in _groups(self._inputs)]
    for position, (x, mask) in enumerate(zip(streams, masks, strict=True)):
      output, sums = attention_sums(
        *self._runner.block(index),
        x,
        mask,
        inputs=self._inputs,
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
    everything = list(map(least_squares.merged, zip(*moments, strict=True)))
    whole = least_squares.merged(everything)
    least_squares.require_finite(f'block {index}', whole.in_out)
    ridge, shared = self._solve(everything)
    if len(moments) == 1:
      self._record(index, ridge, (whole, shared))
      return self._parameters(shared)
    # The class token is one sample per image, too few for a map of its own:
    # its map is that of all tokens plus a correction, which is penalised.
    first, rest = moments
    class_tokens = least_squares.merged(first)
    _, correction = self._solve([fold.beyond(shared) for fold in first])
    own = AffineMap(
      shared.kernel + correction.kernel, shared.bias + correction.bias
    )
    if self._rank is not None:
      own = least_squares.truncate(class_tokens, own, self._rank)
    ridge, others = self._solve(rest)
    patches = least_squares.merged(rest)
    self._record(index, ridge, (class_tokens, own), (patches, others))
    return self._parameters(others) | self._parameters(own, 'class_')

  def _solve(self, folds: Sequence[CrossMoments]) -> tuple[float, AffineMap]:
    """The ridge, given or chosen, and the map of all folds."""
    ridge = self._ridge
    if ridge is None:
      ridge = least_squares.choose_ridge(folds)
    whole = least_squares.merged(folds)
    return ridge, least_squares.solve(whole, ridge, self._rank)

  def _record(
    self, index: int, ridge: float, *maps: tuple[CrossMoments, AffineMap]
  ) -> None:
    whole = least_squares.merged(moments for moments, _ in maps)
    residual = least_squares.residual_share(*maps)
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
    if 'mean' in self._inputs:
      found[f'{prefix}mean'] = {'kernel': jax.device_put(kernel[width:])}
    return found
