"""How far an attention layer is from an affine map of its input (METHOD 6)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax import programs
from lambda_vit_jax.images import ImageSet, Placement
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import EncoderBlock
from lambda_vit_jax.typing import Array, Params

# Of the mean variance of the inputs, added to the diagonal.
_RIDGE = 1e-6


@dataclasses.dataclass(frozen=True)
class CrossMoments:
  """Centred second moments of inputs and outputs, float64 on the host.

  Attributes:
    count: samples.
    mean_in: `[inputs]`.
    mean_out: `[outputs]`.
    in_in: `[inputs, inputs]`, sum of products of deviations.
    in_out: `[inputs, outputs]`.
    out_out: `[outputs]`, the diagonal.
  """

  count: np.ndarray
  mean_in: np.ndarray
  mean_out: np.ndarray
  in_in: np.ndarray
  in_out: np.ndarray
  out_out: np.ndarray

  def merge(self, other: 'CrossMoments') -> 'CrossMoments':
    """Moments of the union of the samples (Chan)."""
    count = self.count + other.count
    share = other.count / max(count, 1.0)
    step_in = other.mean_in - self.mean_in
    step_out = other.mean_out - self.mean_out
    weight = self.count * share
    return CrossMoments(
      count,
      self.mean_in + share * step_in,
      self.mean_out + share * step_out,
      self.in_in + other.in_in + weight * np.outer(step_in, step_in),
      self.in_out + other.in_out + weight * np.outer(step_in, step_out),
      self.out_out + other.out_out + weight * step_out**2,
    )

  def unexplained(self) -> float:
    """Share of the outputs' variance that no affine map explains, 0 to 1."""
    total = self.out_out.sum()
    if not total > 0.0:
      return 0.0
    width = len(self.in_in)
    ridge = _RIDGE * np.trace(self.in_in) / width
    weights = np.linalg.solve(self.in_in + ridge * np.eye(width), self.in_out)
    explained = 2.0 * np.sum(weights * self.in_out) - np.sum(
      weights * (self.in_in @ weights)
    )
    return float(np.clip(1.0 - explained / total, 0.0, 1.0))


@functools.partial(jax.jit, static_argnames=('block', 'placement'))
def _measure(
  block: EncoderBlock,
  params: Params,
  x: Array,
  mask: Array,
  placement: Placement,
) -> tuple[Array, tuple[Array, ...] | None]:
  """A block, and the cross moments of norm1's output and the attention's."""
  del placement
  x, taps = pieces.run_block(block, params, x)
  if block.attention_mode != 'full':
    return x, None
  tokens = x.shape[1]
  keep = mask[:, None, None]
  count = mask.sum(dtype=jnp.int32).astype(jnp.float32) * tokens
  deviations, means = [], []
  for name in ('norm1', 'attention'):
    features = jnp.where(keep, taps[name].astype(jnp.float32), 0.0)
    means.append(features.sum(axis=(0, 1)) / jnp.maximum(count, 1.0))
    deviation = jnp.where(keep, features - means[-1], 0.0)
    deviations.append(deviation.reshape(-1, features.shape[-1]))
  inputs, outputs = deviations
  product = functools.partial(jnp.matmul, precision='highest')
  return x, (
    count,
    *means,
    product(inputs.T, inputs),
    product(inputs.T, outputs),
    (outputs * outputs).sum(axis=0),
  )


def affine_residual(
  model: Model, images: ImageSet, memory_gib: float | None = None
) -> dict[int, float]:
  """Share of each attention's variance that no affine map explains.

  Args:
    model: in any modes but `diluted`.
    images: see `images.read_images`; samples are images × tokens, of which
      there should be many times more than channels.
    memory_gib: activations held at a time, per device.

  Returns:
    Per block in mode `full`, between 0 and 1.
  """
  found: dict[int, CrossMoments] = {}
  for index, measured in programs.walk(model, images, _measure, memory_gib):
    if measured is None:
      continue
    moments = CrossMoments(*(np.asarray(leaf, np.float64) for leaf in measured))
    old = found.get(index)
    found[index] = moments if old is None else old.merge(moments)
  return {index: moments.unexplained() for index, moments in found.items()}
