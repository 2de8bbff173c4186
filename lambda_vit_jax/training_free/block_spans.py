"""Choose which consecutive blocks to drop, by the angle of input and output.

The run of n consecutive blocks with the smallest angle between its input and
its output is dropped (Gromov et al., arXiv 2403.17887). With x_l the stream
before block l, the angle is the mean over images and tokens of

  d(l, n) = arccos(cos(x_l, x_{l+n})) / π

from one pass over the images for all l and n. Labels are not used.
"""

import itertools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.blocks import measure_blocks
from lambda_vit_jax.analysis.images import (
  Batches,
  ImageSet,
  Placement,
  read_images,
)
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, Layers, layer_indices
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free.least_squares import require_finite

# Lower bound of a squared length: an all-zero token has length 0.
_TINY = float(np.finfo(np.float32).tiny)


@check_arguments
def choose_blocks(
  model: Model,
  batches: Batches,
  num_blocks: int,
  *,
  needed: Collection[int] = (),
  removed: Layers = (),
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> tuple[int, ...]:
  """The consecutive blocks with the smallest angle, for `drop_blocks`.

  Args:
    model: without blocks in mode `diluted`, merging or decoder.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes; labels are not used.
    num_blocks: how many blocks to drop.
    needed: blocks that must stay.
    removed: blocks whose attention is removed in any case, or a `Selection`;
      at least one other attention layer stays.
    memory_gib: working memory per device.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    Ascending indices; of several spans with the same angle, the first.

  Raises:
    ModelError: more blocks than can go, or activations that are not finite.
    DataError: no image, or images of another shape.
  """
  found = spans_of(model, num_blocks, needed, tuple(layer_indices(removed)))
  images = read_images(batches, model, mesh)
  distances = angles(model, images, memory_gib)
  return tuple(found[min(found, key=lambda i: distances[i, i + num_blocks])])


def spans_of(
  model: Model,
  num_blocks: int,
  needed: Collection[int] = (),
  removed: Collection[int] = (),
) -> dict[int, range]:
  """The spans of blocks that may be dropped, by their first block.

  The arguments are those of `choose_blocks`.

  Raises:
    ModelError: there is no such span.
  """
  rows = [MODES[mode] for mode in model.attention_modes]
  doubling = {i for i, mode in enumerate(rows) if mode.residual_scale == 2}
  needed = {*needed, *doubling}
  mixing = {i for i, mode in enumerate(rows) if mode.mixes_tokens} - {*removed}
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
      'block with attention must stay, and so must those that double the '
      'stream or that a decoder reads'
    )
  return found


def angles(
  model: Model, images: ImageSet, memory_gib: float | None = None
) -> np.ndarray:
  """Measures d(l, n) for all l and n.

  Returns:
    `[depth + 1, depth + 1]` float64: d(l, n) is in row l and column l + n, and
    zeros are below the diagonal.

  Raises:
    ModelError: activations that are not finite.
  """
  streams: list[Array] = []
  total = np.zeros((model.depth + 1,) * 2)
  for index, (before, after, mask) in measure_blocks(
    model, images, _streams, memory_gib
  ):
    streams = [*streams, after] if index else [before, after]
    if index == model.depth - 1:
      # One pair at a time, which keeps no second copy of all streams.
      sums = {
        (i, j): _sum_of_angles(streams[i], streams[j], mask, images.placement)
        for i, j in itertools.combinations(range(len(streams)), 2)
      }
      for pair, value in jax.device_get(sums).items():
        total[pair] += value
  for index in range(model.depth):
    # The first block after which a stream is not finite.
    require_finite(f'block {index}', total[: index + 2, : index + 2])
  return total / images.total


def _streams(
  taps: dict[str, Array], mask: Array, placement: Placement
) -> tuple[Array, Array, Array]:
  """The streams before and after a block, and the mask of their images."""
  streams = taps['input'], taps['output']
  return *jax.lax.with_sharding_constraint(streams, placement.batch), mask


@compilation.jit(exact=True, static_argnames=('placement',))
def _sum_of_angles(
  x: Array, y: Array, mask: Array, placement: Placement
) -> Array:
  """Sum over images of the mean angle of the tokens of two streams."""
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
