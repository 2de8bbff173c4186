"""Score attention layers by how well an affine map explains them.

The criterion `affine`: the share of the attention's variance that the best
affine map of its input leaves unexplained.
"""

import jax.numpy as jnp

from lambda_vit_jax.analysis.blocks import measure_blocks
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.least_squares import CrossMoments, Sums

# Relative to the inputs' mean variance: no larger than rounding requires.
_RIDGE = 1e-6


def _cross_sums(
  taps: dict[str, Array], mask: Array, placement: Placement
) -> Sums | None:
  """Sums of products of norm1's output and the attention's."""
  del placement
  if 'attention' not in taps:
    return None
  inputs, outputs = taps['norm1'], taps['attention']
  keep = jnp.repeat(mask, inputs.shape[1])
  width = inputs.shape[-1]
  return least_squares.batch_sums(
    inputs.reshape(-1, width), outputs.reshape(-1, width), keep
  )


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
    if not MODES[model.attention_modes[index]].has_attention:
      continue
    moments = CrossMoments.from_sums(measured)
    old = found.get(index)
    found[index] = moments if old is None else old.merge(moments)
  return {
    index: least_squares.residual_share(
      (moments, least_squares.solve(moments, _RIDGE))
    )
    for index, moments in found.items()
  }
