"""Which whole blocks a network needs least, without labels (METHOD 6).

Consecutive blocks that turn the stream by a small angle are the ones to drop
(Gromov et al., arXiv 2403.17887): with the stream x_l before block l and n
blocks, the mean over images and tokens of

  d(l, n) = arccos(cos(x_l, x_{l+n})) / π

from one pass of the images, for all l and n at once.
"""

import itertools
import numbers
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.blocks import measure_blocks
from lambda_vit_jax.analysis.images import ImageSet, Placement, read_images
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free.least_squares import require_finite

# Of a squared length, which an all-zero token has not.
_TINY = float(np.finfo(np.float32).tiny)


def choose_blocks(
  model: Model,
  batches: Iterable[Array | Mapping[str, Array]],
  num_blocks: int,
  *,
  needed: Collection[int] = (),
  removed: Collection[int] = (),
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> tuple[int, ...]:
  """The consecutive blocks that turn the stream least, for `drop_blocks`.

  Args:
    model: without blocks in mode `diluted`, merging or decoder.
    batches: an iterable of normalised NHWC arrays or of dicts with `image`
      (and `mask`), without labels.
    num_blocks: how many.
    needed: blocks that must stay.
    removed: blocks whose attention goes in any case: one other stays.
    memory_gib: working memory per device.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    Ascending indices; the last of the spans where several turn it alike.

  Raises:
    ModelError: more blocks than can go, or activations that are not finite.
    DataError: no image, or images of another shape.
  """
  found = spans_of(model, num_blocks, needed, removed)
  images = read_images(batches, model, mesh)
  distances = angles(model, images, memory_gib)
  return tuple(found[min(found, key=lambda i: distances[i, i + num_blocks])])


def spans_of(
  model: Model,
  num_blocks: int,
  needed: Collection[int] = (),
  removed: Collection[int] = (),
) -> dict[int, range]:
  """The consecutive blocks that can go, by the first of them.

  Args:
    model: see `choose_blocks`, as all that follow.
    num_blocks: how many.
    needed: blocks.
    removed: blocks.

  Raises:
    ModelError: none.
  """
  whole = isinstance(num_blocks, numbers.Integral)
  if isinstance(num_blocks, bool) or not whole:
    raise ModelError(f'num_blocks={num_blocks!r}: a whole number of blocks')
  modes = model.attention_modes
  # A block in mode `identity` doubles the stream.
  needed = {*needed, *(i for i, mode in enumerate(modes) if mode == 'identity')}
  mixing = {i for i, mode in enumerate(modes) if mode == 'full'} - {*removed}
  starts = model.depth - num_blocks + 1 if num_blocks >= 0 else 0
  spans = {first: range(first, first + num_blocks) for first in range(starts)}
  found = {
    first: span
    for first, span in spans.items()
    if needed.isdisjoint(span) and not mixing <= set(span)
  }
  if not found:
    raise ModelError(
      f'{num_blocks} blocks cannot be dropped in a row from {model.depth}: one '
      'with attention must stay, and those that double the stream or that a '
      'decoder reads'
    )
  return found


def angles(
  model: Model, images: ImageSet, memory_gib: float | None = None
) -> np.ndarray:
  """d(l, n) in row l and column l + n, `[depth + 1, depth + 1]` float64.

  Zeros below the diagonal.

  Args:
    model: see `choose_blocks`.
    images: of the measurement.
    memory_gib: working memory per device.

  Raises:
    ModelError: activations that are not finite.
  """
  streams: list[Array] = []
  total = np.zeros((model.depth + 1,) * 2)
  for index, (before, behind, mask) in measure_blocks(
    model, images, _step, memory_gib
  ):
    streams = [*streams, behind] if index else [before, behind]
    if index == model.depth - 1:
      # One pair after another: no second copy of all streams.
      pairs = list(itertools.combinations(range(len(streams)), 2))
      sums = [
        _sum_of_angles(streams[i], streams[j], mask, images.placement)
        for i, j in pairs
      ]
      for pair, value in zip(pairs, jax.device_get(sums), strict=True):
        total[pair] += value
  require_finite('', total)
  return total / images.total


@compilation.jit(static_argnames=('block', 'placement'))
def _step(
  block: EncoderBlock,
  params: Params,
  x: Array,
  mask: Array,
  placement: Placement,
) -> tuple[Array, Any]:
  output, _ = pieces.run_block(block, params, x)
  output = jax.lax.with_sharding_constraint(output, placement.batch)
  return output, (x, output, mask)


@compilation.jit(static_argnames=('placement',))
def _sum_of_angles(
  x: Array, y: Array, mask: Array, placement: Placement
) -> Array:
  """Over the images, between two streams; tokens are averaged."""
  x, y = (_unit(stream.astype(jnp.float32)) for stream in (x, y))
  # Kahan's form: arccos of a cosine loses small angles to rounding.
  across, along = (
    jnp.sqrt(jnp.square(side).sum(axis=-1)) for side in (x - y, x + y)
  )
  each = 2.0 / jnp.pi * jnp.arctan2(across, along).mean(axis=1)
  total = jnp.where(mask, each, 0.0).sum()
  return jax.lax.with_sharding_constraint(total, placement.replicated)


def _unit(x: Array) -> Array:
  squared = (x * x).sum(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, _TINY))
