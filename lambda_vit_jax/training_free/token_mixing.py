"""Fit the matrices over tokens of the input `mixing`.

Each head's attention is replaced by one fixed matrix,

  A_h = (Σ o_h·v_hᵀ)·(Σ v_h·v_hᵀ + λI)⁻¹,

where v_h `[tokens, head_dim]` are the head's values on the modified network's
stream, o_h what the head gives on the reference's, and the sums are over images
and the head's channels. What they mix is an input of the affine map.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis.images import Placement
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free.least_squares import require_finite
from lambda_vit_jax.training_free.stream_pair import Halves

RIDGE = 1e-3
"""λ as a share of the mean of the diagonal of Σ v_h·v_hᵀ."""


def values_of(params: Params) -> Params:
  """The projection to the values, from n(x): norm1's scale and bias absorbed.

  Args:
    params: of a block in mode `full`.

  Returns:
    `kernel` `[embed, embed]` and `bias` `[embed]`, float32.
  """
  norm = params['norm1']
  projection = pieces.value_projection(params['attn'], len(norm['scale']))
  kernel, own = (np.asarray(leaf, np.float64) for leaf in projection)
  bias = np.asarray(norm['bias'], np.float64) @ kernel + own
  kernel = np.asarray(norm['scale'], np.float64)[:, None] * kernel
  found = {'kernel': kernel, 'bias': bias}
  return {
    name: jax.device_put(np.asarray(leaf, np.float32))
    for name, leaf in found.items()
  }


@compilation.jit(exact=True, static_argnames=('block', 'placement'))
def head_sums(
  block: EncoderBlock,
  params: Params,
  values: Params,
  x: Array,
  reference: Array,
  mask: Array,
  *,
  placement: Placement,
) -> tuple[Array, Array]:
  """Σ o_h·v_hᵀ and Σ v_h·v_hᵀ of one micro-batch, `[heads, tokens, tokens]`.

  Args:
    block: of the reference, in mode `full`.
    params: of this block.
    values: see `values_of`.
    x: the modified network's stream before the block.
    reference: the reference's.
    mask: `[batch]`, False for padding.
    placement: of the streams.
  """
  keep = mask[:, None, None]

  def heads(rows: Array) -> Array:
    rows = jnp.where(keep, rows, 0.0)
    return rows.reshape(*rows.shape[:2], block.num_heads, -1)

  projected = normalize(x, block.norm_eps) @ values['kernel'] + values['bias']
  own = heads(projected)
  given = heads(pieces.head_outputs(block, params, reference))
  sums = tuple(
    jnp.einsum('bqhd,bkhd->hqk', rows, own, precision='highest')
    for rows in (given, own)
  )
  return jax.lax.with_sharding_constraint(sums, placement.replicated)


def fit_mixing(
  index: int,
  block: tuple[EncoderBlock, Params],
  values: Params,
  streams: Iterable[Halves],
  placement: Placement,
) -> Params:
  """The parameters `values` and `mixer` of a block's map.

  Args:
    index: of the block, for messages.
    block: of the reference, and its parameters.
    values: see `values_of`.
    streams: per micro-batch, as of `head_sums`.
    placement: of the streams.

  Raises:
    ModelError: activations that are not finite.
  """
  total: list[np.ndarray] = []
  for x, reference, mask in streams:
    found = head_sums(*block, values, x, reference, mask, placement=placement)
    sums = [np.asarray(part, np.float64) for part in jax.device_get(found)]
    total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
  given, own = total
  require_finite(f'block {index}', given, own)
  diagonal = np.trace(own, axis1=1, axis2=2) / own.shape[-1]
  added = RIDGE * diagonal[:, None, None] * np.eye(own.shape[-1])
  # Symmetric: solving from the left and transposing divides from the right.
  weights = np.linalg.solve(own + added, given.swapaxes(1, 2)).swapaxes(1, 2)
  weights = jax.device_put(np.asarray(weights, np.float32))
  return {'values': values, 'mixer': {'weights': weights}}
