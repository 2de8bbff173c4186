"""Score attention layers by how well an affine map explains them.

The criterion `affine`: the share of the attention's variance that the best
affine map of its input leaves unexplained.
"""

import jax.numpy as jnp

from lambda_vit_jax.analysis.blocks import measure_blocks
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.least_squares import CrossMoments, Sums

# Relative to the inputs' mean variance: no larger than rounding requires.
_RIDGE = 1e-6


@compilation.jit(static_argnames=('block', 'placement'))
def _cross_sums(
  block: EncoderBlock,
  params: Params,
  x: Array,
  mask: Array,
  placement: Placement,
) -> tuple[Array, Sums | None]:
  """Runs a block; sums the products of its norm1 and attention outputs."""
  del placement
  x, taps = pieces.run_block(block, params, x)
  if block.attention_mode != 'full':
    return x, None
  keep = jnp.repeat(mask, x.shape[1])
  inputs, outputs = (
    taps[name].reshape(-1, x.shape[-1]) for name in ('norm1', 'attention')
  )
  return x, least_squares.batch_sums(inputs, outputs, keep)


def affine_residual(
  model: Model, images: ImageSet, memory_gib: float | None = None
) -> dict[int, float]:
  """Share of each attention layer's variance that no affine map explains.

  Args:
    model: no block in mode `diluted`.
    images: see `images.read_images`; samples are images × tokens, and should
      be many times more than channels.
    memory_gib: activations held at a time, per device.

  Returns:
    Per block in mode `full`, between 0 and 1.
  """
  found: dict[int, CrossMoments] = {}
  for index, measured in measure_blocks(model, images, _cross_sums, memory_gib):
    if measured is None:
      continue
    moments = CrossMoments.from_sums(measured)
    old = found.get(index)
    found[index] = moments if old is None else old.merge(moments)
  return {
    index: least_squares.residual_share(
      moments, least_squares.solve(moments, _RIDGE)
    )
    for index, moments in found.items()
  }
