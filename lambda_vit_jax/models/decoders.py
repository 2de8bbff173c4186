"""Segmentation decoders: from token grids to per-pixel logits.

`linear` maps each token of the final norm to its classes, as DINOv2's linear
evaluation does (arXiv 2304.07193). `upernet` (Xiao et al., arXiv 1807.10221)
reads the un-normed stream after four blocks, rescales the grids by 4, 2, 1
and 1/2, pools the coarsest over pyramids of 1, 2, 3 and 6 cells, and fuses all
top-down, with the usual sizes for a ViT (512 channels). Its norms are LayerNorms
over channels instead of batch norms: no output depends on the other images of a
batch, and there are no running statistics. There is no auxiliary head.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lambda_vit_jax.core.errors import ModelError, nearest
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models import token_merging
from lambda_vit_jax.models.layers import Dense, LayerNorm, small_init
from lambda_vit_jax.models.resampling import pooling_matrix, resample, resize

KINDS = ('linear', 'upernet')
"""Values of `Decoder.kind`."""

POOLS = (1, 2, 3, 6)
"""Cells along each side of the pooled versions of the coarsest grid."""

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Scales of the four grids, from the first block that is read to the last."""

EPSILON = 1e-6
"""Epsilon of the norms of `upernet`."""

_MOST_CHANNELS = 1 << 14


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Description of a segmentation decoder; static and hashable.

  Attributes:
    kind: one of `KINDS`.
    blocks: indices of the blocks whose outputs `upernet` reads, ascending; empty
      for `linear`.
    channels: width of `upernet`.
    dropout: probability in training that a channel of an image is zeroed before
      the last product.
    doublings: per entry of `blocks` the k by which folding has scaled the stream
      there to 2^-k; the grid is multiplied by 2^k (docs/method.md#folding).
  """

  kind: str = 'linear'
  blocks: tuple[int, ...] = ()
  channels: int = 512
  dropout: float = 0.1
  doublings: tuple[int, ...] = ()

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ModelError(
        f'segmentation decoder {self.kind!r} is not known'
        f'{nearest(str(self.kind), KINDS)}; known are {", ".join(KINDS)}'
      )
    number = len(SCALES) if self.kind == 'upernet' else 0
    if len(self.blocks) != number or list(self.blocks) != sorted(self.blocks):
      raise ModelError(
        f'segmentation decoder {self.kind!r} with blocks {self.blocks}: '
        'upernet reads four blocks, ascending, linear none'
      )
    if not 1 <= self.channels <= _MOST_CHANNELS or not 0 <= self.dropout < 1:
      raise ModelError(
        f'segmentation decoder with channels={self.channels} and '
        f'dropout={self.dropout}: give 1 to {_MOST_CHANNELS}, and 0 to below 1'
      )

  def check_depth(self, depth: int) -> None:
    """Raises ModelError if a block is read that the network lacks."""
    missing = [block for block in self.blocks if not 0 <= block < depth]
    if missing:
      raise ModelError(
        f'the segmentation decoder reads block {missing[0]}; blocks are 0 to '
        f'{depth - 1}'
      )

  def factor(self, place: int, halvings: int = 0) -> float:
    """Factor of the grid at index `place`; `halvings` factors 2 are left out."""
    folded = self.doublings[place] if self.doublings else 0
    return 2.0 ** (folded + halvings)

  def folded(self, counts: Sequence[int]) -> 'Decoder':
    """The decoder of the folded network; `counts` of `modes.doublings`."""
    old = self.doublings or (0,) * len(self.blocks)
    new = (counts[b] + k for b, k in zip(self.blocks, old, strict=True))
    return dataclasses.replace(self, doublings=tuple(new))

  def to_json(self) -> dict[str, Any]:
    """Plain lists and numbers."""
    return {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in dataclasses.asdict(self).items()
    }

  @classmethod
  def from_json(cls, fields: Any, depth: int) -> 'Decoder':
    """Inverse of `to_json`, checking everything.

    Raises:
      ModelError: anything that `to_json` would not have written.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(fields, Mapping) or set(fields) - known:
      raise ModelError('segmentation decoder: not a description of one')
    values = dict(fields)
    for name in ('blocks', 'doublings'):
      value = values.get(name, [])
      if not isinstance(value, list) or not all(
        type(item) is int and 0 <= item <= depth for item in value
      ):
        raise ModelError(f'segmentation decoder: {name} is no list of numbers')
      values[name] = tuple(value)
    for name, kind in (('channels', int), ('dropout', float)):
      if name in values and type(values[name]) not in (int, kind):
        raise ModelError(f'segmentation decoder: {name} is no number')
    found = cls(**values)
    if len(found.doublings) not in (0, len(found.blocks)):
      raise ModelError('segmentation decoder: doublings and blocks differ')
    found.check_depth(depth)
    return found


def spread_blocks(depth: int) -> tuple[int, ...]:
  """Four blocks at the ends of the quarters: 2, 5, 8, 11 of 12."""
  return tuple(math.ceil(depth * (k + 1) / 4) - 1 for k in range(4))


def channel_dropout(x: Array, rate: float, key: Array | None) -> Array:
  """Zeroes channels of an image, rescaling the others; unchanged without key."""
  if key is None or not rate:
    return x
  shape = (x.shape[0], 1, 1, x.shape[-1])
  kept = jax.random.bernoulli(key, 1.0 - rate, shape)
  return x * (kept.astype(x.dtype) / (1.0 - rate))


def scaled_size(grid: tuple[int, ...], scale: float) -> tuple[int, int]:
  """Size of a rescaled grid, at least one cell."""
  return max(1, int(grid[0] * scale)), max(1, int(grid[1] * scale))


class ConvUnit(nn.Module):
  """Convolution without bias, LayerNorm over channels, ReLU."""

  channels: int
  kernel: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.kernel == 1:
      x = Dense(self.channels, self.dtype, use_bias=False, name='conv')(x)
    else:
      size = (self.kernel, self.kernel)
      x = nn.Conv(
        self.channels, size, use_bias=False, dtype=self.dtype, name='conv'
      )(x)
    return nn.relu(LayerNorm(EPSILON, self.dtype, name='norm')(x))


class LinearDecoder(nn.Module):
  """One affine map of every token to its classes."""

  num_classes: int
  dropout: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, grids: Sequence[Array], dropout_key: Array | None = None
  ) -> Array:
    """One grid `[batch, rows, columns, embed]` to `[..., num_classes]`."""
    (grid,) = grids
    grid = channel_dropout(grid, self.dropout, dropout_key)
    classify = Dense(
      self.num_classes, self.dtype, kernel_init=small_init, name='classify'
    )
    return classify(grid)


class UperNet(nn.Module):
  """Four grids of one size to logits on the finest."""

  num_classes: int
  channels: int
  dropout: float
  dtype: Any = jnp.float32

  def _unit(self, name: str, kernel: int) -> ConvUnit:
    return ConvUnit(self.channels, kernel, self.dtype, name=name)

  @nn.compact
  def __call__(
    self, grids: Sequence[Array], dropout_key: Array | None = None
  ) -> Array:
    """Grids `[batch, rows, columns, embed]`, first block first.

    Returns:
      `[batch, 4·rows, 4·columns, num_classes]`.
    """
    *levels, coarsest = [
      self._rescale(place, grid.astype(self.dtype))
      for place, grid in enumerate(grids)
    ]
    fused = [
      self._unit(f'lateral{place}', 1)(level)
      for place, level in enumerate(levels)
    ]
    fused.append(self._pool(coarsest))
    for place in reversed(range(len(levels))):
      above = resize(fused[place + 1], fused[place].shape[1:3])
      fused[place] = fused[place] + above
    size = fused[0].shape[1:3]
    outputs = [
      resize(self._unit(f'smooth{place}', 3)(level), size)
      for place, level in enumerate(fused[:-1])
    ]
    outputs.append(resize(fused[-1], size))
    x = self._unit('fuse', 3)(jnp.concatenate(outputs, axis=-1))
    x = channel_dropout(x, self.dropout, dropout_key)
    classify = Dense(
      self.num_classes, self.dtype, kernel_init=small_init, name='classify'
    )
    return classify(x)

  def _rescale(self, place: int, grid: Array) -> Array:
    """The neck: an affine map, another size, and a smoothing convolution."""
    width = grid.shape[-1]
    grid = Dense(width, self.dtype, name=f'neck{place}')(grid)
    size = scaled_size(grid.shape[1:3], SCALES[place])
    return nn.Conv(width, (3, 3), dtype=self.dtype, name=f'rescale{place}')(
      resize(grid, size)
    )

  def _pool(self, level: Array) -> Array:
    """Pyramid pooling: the grid together with its means over coarser cells."""
    height, width = level.shape[1:3]
    parts = [level]
    for cells in POOLS:
      pooled = resample(
        level, pooling_matrix(height, cells), pooling_matrix(width, cells)
      )
      pooled = self._unit(f'pool{cells}', 1)(pooled)
      parts.append(resize(pooled, (height, width)))
    return self._unit('pooled', 3)(jnp.concatenate(parts, axis=-1))


def read_grids(
  decoder: Decoder,
  blocks: Sequence[Mapping[str, Array]],
  halvings: Sequence[int],
  grid: Callable[[Array, Array | None], Array],
) -> tuple[dict[str, Array], Array | None]:
  """The streams that a decoder reads, as grids.

  Args:
    decoder: which blocks it reads.
    blocks: intermediates of every block, see `EncoderBlock`.
    halvings: factors of 2 that are left out of each block's output.
    grid: from tokens, and the one that each patch is part of, to a grid.

  Returns:
    `grid0` and so on, `[batch, rows, columns, embed]`; and the token that each
    patch is part of in the end, None where none has merged.
  """
  grids: dict[str, Array] = {}
  owners = None
  for index, block in enumerate(blocks):
    if 'places' in block:
      owners = token_merging.follow(owners, block['places'])
    for place, read in enumerate(decoder.blocks):
      if read == index:
        factor = decoder.factor(place, halvings[index])
        grids[f'grid{place}'] = grid(block['output'], owners) * factor
  return grids, owners


def make_decoder(
  decoder: Decoder, num_classes: int, dtype: Any
) -> LinearDecoder | UperNet:
  """The Linen module of a description."""
  if decoder.kind == 'linear':
    return LinearDecoder(num_classes, decoder.dropout, dtype)
  return UperNet(num_classes, decoder.channels, decoder.dropout, dtype)


def count_macs(
  decoder: Decoder, grid: tuple[int, int], embed_dim: int, num_classes: int
) -> int:
  """Multiply-accumulates of the products with parameters, per image."""
  if decoder.kind == 'linear':
    return grid[0] * grid[1] * embed_dim * num_classes
  width, channels = embed_dim, decoder.channels
  areas = [math.prod(scaled_size(grid, scale)) for scale in SCALES]
  total = 4 * grid[0] * grid[1] * width**2 + sum(areas) * 9 * width**2
  total += sum(areas[:-1]) * (width + 9 * channels) * channels
  total += sum(cells**2 for cells in POOLS) * width * channels
  total += areas[-1] * 9 * (width + len(POOLS) * channels) * channels
  total += areas[0] * (9 * 4 * channels + num_classes) * channels
  return total
