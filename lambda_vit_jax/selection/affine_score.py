"""Score attention layers by how well an affine map explains them.

The criterion `affine`: the share of the attention's variance that the best
affine map of its input leaves unexplained. `canonical` asks the same of every
direction in which the output varies, whatever its variance: Σ(1 − ρ²) over the
canonical correlations ρ of input and output (NBL, arXiv 2505.21077).
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

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


def _joint_sums(
  taps: dict[str, Array], mask: Array, placement: Placement
) -> Sums | None:
  """Sums of products of both with both."""
  del placement
  if 'attention' not in taps:
    return None
  joint = jnp.concatenate([taps['norm1'], taps['attention']], axis=-1)
  rows = joint.reshape(-1, joint.shape[-1])
  # Without outputs: all that is needed are products of these inputs.
  keep = jnp.repeat(mask, joint.shape[1])
  return least_squares.batch_sums(rows, rows[:, :0], keep)


def _moments(
  model: Model,
  images: ImageSet,
  measure: Callable[[dict[str, Array], Array, Placement], Sums | None],
  memory_gib: float | None,
) -> dict[int, CrossMoments]:
  """Per block in mode `full`, over all images."""
  found: dict[int, CrossMoments] = {}
  for index, measured in measure_blocks(model, images, measure, memory_gib):
    if not MODES[model.attention_modes[index]].has_attention:
      continue
    moments = CrossMoments.from_sums(measured)
    where = f'block {index}'
    least_squares.require_finite(where, moments.in_in, moments.in_out)
    old = found.get(index)
    found[index] = moments if old is None else old.merge(moments)
  return found


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

  Raises:
    ModelError: activations that are not finite; names the block.
  """
  return {
    index: least_squares.residual_share(
      (moments, least_squares.solve(moments, _RIDGE))
    )
    for index, moments in _moments(
      model, images, _cross_sums, memory_gib
    ).items()
  }


def canonical_residual(
  model: Model, images: ImageSet, memory_gib: float | None = None
) -> dict[int, float]:
  """Σ(1 − ρ²) of the canonical correlations of each layer's input and output.

  Args:
    model: no block in mode `diluted`.
    images: see `images.read_images`; samples are images × tokens, and should
      be many times more than channels.
    memory_gib: activations held at a time, per device.

  Returns:
    Per block in mode `full`, between 0 and the number of directions in which the
    output varies.

  Raises:
    ModelError: activations that are not finite; names the block.
  """
  return {
    index: _uncorrelated(moments)
    for index, moments in _moments(
      model, images, _joint_sums, memory_gib
    ).items()
  }


def _uncorrelated(joint: CrossMoments) -> float:
  """Σ(1 − ρ²) of the first and the second half of the channels.

  A direction in which the second half does not vary has nothing to explain, and
  counts 0: of constants a map needs no input.
  """
  products = joint.in_in
  width = len(products) // 2
  first, second = slice(width), slice(width, None)

  def inverse_times(half: slice, other: slice) -> np.ndarray:
    own = products[half, half]
    # Below its floor the variance of a constant is that of its rounding.
    added = max(
      _RIDGE * np.trace(own) / width,
      least_squares.rounding_floor(joint.count, joint.mean_in[half]),
      np.finfo(np.float64).tiny,
    )
    return np.linalg.solve(own + added * np.eye(width), products[half, other])

  directions = np.trace(inverse_times(second, second))
  squares = inverse_times(second, first) @ inverse_times(first, second)
  return max(float(directions - np.trace(squares)), 0.0)
