"""The pass over a network that fits affine maps (see `linearizer`).

The streams of all images are carried from block to block: the embedding and
every block run once, whatever the number of chosen blocks. At a chosen block
one pass leaves sums of products (see `lambda_vit_jax.training_free.least_squares`), and, fitting
in sequence, a second one runs the block with its new map, so that later maps
are fitted to what the network has become. Blocks that are equal as modules
share programs: their number does not grow with the depth.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis import blocks, memory
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.errors import not_finite
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import folds as folds_lib
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.folds import FoldMoments
from lambda_vit_jax.training_free.least_squares import (
  AffineMap,
  CrossMoments,
  Sums,
)


@dataclasses.dataclass(frozen=True)
class BlockFit:
  """How well one block's attention was replaced.

  Attributes:
    block_index: which.
    ridge: share of the inputs' mean variance.
    residual: share of the attention's variance that the map leaves, on the
      images that it was fitted on.
    samples: images × tokens.
  """

  block_index: int
  ridge: float
  residual: float
  samples: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is fitted: `inputs`, `ridge` (None: chosen) and `rank`."""

  inputs: tuple[str, ...]
  ridge: float | None
  rank: int | None


@compilation.jit(
  static_argnames=('block', 'folds', 'inputs', 'with_output', 'placement'),
)
def measure(
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
  """A block with attention: its output if wanted, and the sums of the fit.

  Args:
    block: static, in mode `full`.
    params: of the block.
    x: the stream `[batch, tokens, embed]`.
    mask: `[batch]`, False for padding.
    folds: image i is in fold i modulo this.
    inputs: of the map; with `class_map`, class tokens are the first group.
    with_output: whether the block's other half runs, too.
    placement: of the batch.

  Returns:
    The stream or None; per group of tokens, `linear.batch_sums` with a leading
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
    folds_lib.fold_sums(
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


class Fitter:
  """Carries the streams through the network and fits on the way."""

  def __init__(
    self,
    model: Model,
    images: ImageSet,
    layers: Sequence[int],
    plan: Plan,
    memory_gib: float | None,
  ):
    self.fits: list[BlockFit] = []
    self._old = model.module
    self._module = model.module.clone(linear_inputs=plan.inputs)
    self._images = images
    self._place = images.placement
    self._layers = layers
    self._plan = plan
    self._size = memory.micro_batch_size(self._old, images, memory_gib)
    self._params = self._place.replicate(model.params)

  def run(
    self,
    in_place: Collection[int],
    on_progress: Callable[[int, int], None] | None = None,
  ) -> dict[int, Params]:
    """Fits all layers.

    Args:
      in_place: those whose map takes the attention's place in the network
        that later ones are fitted on.
      on_progress: called with blocks done and blocks in all.

    Returns:
      Per layer the parameters of its `attn` in mode `linear`.
    """
    stem = pieces.stem_of(self._old)
    outer = pieces.stem_params(self._params, self._old.depth)
    batches = self._images.micro_batches(self._size)
    streams, masks = [], []
    for batch in batches:
      x, _ = blocks.embed(stem, outer, batch['image'], self._place)
      streams.append(x)
      masks.append(batch['mask'])
    found = {}
    # What lies behind the last chosen block does not matter.
    last = max(self._layers, default=-1)
    for index in range(last + 1):
      if index not in self._layers:
        for position, x in enumerate(streams):
          streams[position] = self._advance(index, x)
      else:
        stays = index not in in_place
        moments = self._moments(index, streams, masks, advance=stays)
        found[index] = self._fit(index, moments)
        if not stays and index < last:
          block = pieces.block_of(self._module, index, 'linear')
          params = pieces.mlp_params(self._params, index)
          params |= {'attn': self._place.replicate(found[index])}
          for position, x in enumerate(streams):
            streams[position] = blocks.attend(block, params, x, self._place)
      jax.block_until_ready(streams)
      if on_progress is not None:
        on_progress(index + 1, last + 1)
    return found

  def _advance(self, index: int, x: Array) -> Array:
    """A block as it is in the model."""
    mode = self._old.attention_modes[index]
    if mode in ('full', 'linear'):
      block = pieces.block_of(self._old, index, mode)
      params = pieces.block_params(self._params, index)
      return blocks.attend(block, params, x, self._place)
    block = pieces.block_of(self._old, index, 'absent')
    scale = np.float32(2.0 if mode == 'identity' else 1.0)
    params = pieces.mlp_params(self._params, index)
    return blocks.pass_by(block, params, x, scale, self._place)

  def _moments(
    self, index: int, streams: list[Any], masks: list[Any], advance: bool
  ) -> list[FoldMoments]:
    """Per group of tokens, over all images; moves the streams if wanted."""
    folds = folds_lib.folds_within(self._size)
    found = [FoldMoments() for _ in _groups(self._plan.inputs)]
    for position, (x, mask) in enumerate(zip(streams, masks, strict=True)):
      output, sums = measure(
        pieces.block_of(self._old, index, 'full'),
        pieces.block_params(self._params, index),
        x,
        mask,
        folds=folds,
        inputs=self._plan.inputs,
        with_output=advance,
        placement=self._place,
      )
      if advance:
        streams[position] = output
      for group, values in zip(found, jax.device_get(sums), strict=True):
        group.add(position, values)
    return found

  def _fit(self, index: int, groups: Sequence[FoldMoments]) -> Params:
    """The parameters that stand in for an attention."""
    moments = [group.folds for group in groups]
    everything = [
      least_squares.merged(folds) for folds in zip(*moments, strict=True)
    ]
    whole = least_squares.merged(everything)
    if not np.isfinite(whole.in_out).all():
      raise not_finite(f'block {index}')
    ridge, shared = self._solve(everything)
    if len(moments) == 1:
      self._record(index, ridge, [(whole, shared)])
      return self._parameters(shared)
    # The class token is one sample an image, too few for a map by itself:
    # its map is that of all tokens and a correction, which is penalised.
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
    """The ridge in force, and the map of all folds."""
    ridge = self._plan.ridge
    if ridge is None:
      ridge = least_squares.choose_ridge(folds)
    affine = least_squares.solve(
      least_squares.merged(folds), ridge, self._plan.rank
    )
    return ridge, affine

  def _limited(self, moments: CrossMoments, affine: AffineMap) -> AffineMap:
    """A map within the rank that is wanted."""
    if self._plan.rank is None:
      return affine
    return least_squares.truncate(moments, affine, self._plan.rank)

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
    width = self._old.embed_dim
    # By numpy: jax.numpy would compile a program for each shape.
    kernel, bias = (
      np.asarray(leaf, np.float32) for leaf in (affine.kernel, affine.bias)
    )
    found: Params = {
      f'{prefix}linear': {
        'kernel': jax.device_put(kernel[:width]),
        'bias': jax.device_put(bias),
      }
    }
    if 'mean' in self._plan.inputs:
      found[f'{prefix}mean'] = {'kernel': jax.device_put(kernel[width:])}
    return found
