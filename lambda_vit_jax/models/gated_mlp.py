"""SwiGLU: an MLP whose hidden layer is gated, `silu(x·G + g) · (x·U + u)`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.layers import Dense, LayerNorm

MLPS = ('plain', 'swiglu', 'swiglu_packed')
"""Kinds of MLP: not gated; two matrices `fc1_g` and `fc1_x`; both in `fc1`."""


class GatedMlp(nn.Module):
  """SwiGLU with timm's parameter names.

  Attributes:
    hidden_dim: width of the gated hidden layer.
    packed: whether gate and value are the halves of one matrix `fc1`.
    norm_eps: epsilon of a norm of the hidden layer; None for no norm.
  """

  hidden_dim: int
  packed: bool
  norm_eps: float | None = None
  dtype: Any = jnp.float32
  quantization: str = 'none'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[..., embed]` to the same."""
    settings = self.dtype, self.quantization
    halves: list[Array]
    if self.packed:
      both = Dense(2 * self.hidden_dim, *settings, name='fc1')(x)
      halves = list(jnp.split(both, 2, axis=-1))
    else:
      halves = [
        Dense(self.hidden_dim, *settings, name=name)(x)
        for name in ('fc1_g', 'fc1_x')
      ]
    hidden: Array = jax.nn.silu(halves[0]) * halves[1]
    if self.norm_eps is not None:
      hidden = LayerNorm(self.norm_eps, self.dtype, name='norm')(hidden)
    self.sow('hidden', 'offered', hidden)
    return Dense(x.shape[-1], *settings, name='fc2')(hidden)
