"""Attention pooling: a learnt query gathers the patches into one vector."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.attention import dot_product_attention
from lambda_vit_jax.models.layers import (
  Dense,
  LayerNorm,
  MlpBlock,
  parameter,
  small_init,
)


class AttentionPool(nn.Module):
  """SigLIP's readout, with timm's names: attention from `latent`, then an MLP.

  Attributes:
    num_heads: of the attention.
    mlp_ratio: hidden width of the MLP, relative to the width.
    activation: of the MLP.
    epsilon: of the norm before it.
  """

  num_heads: int
  mlp_ratio: float
  activation: str
  epsilon: float
  dtype: Any = jnp.float32
  quantization: str = 'none'

  @nn.compact
  def __call__(self, patches: Array, sizes: Array | None = None) -> Array:
    """Pools `[batch, patches, embed]` to `[batch, embed]`.

    Each token counts as many times as it has patches, `sizes` `[batch, patches]`.
    """
    width = patches.shape[-1]
    latent = parameter(self, 'latent', small_init, (1, 1, width))
    settings = self.dtype, self.quantization
    query = Dense(width, *settings, name='q')(latent)
    keys, values = jnp.split(
      Dense(2 * width, *settings, name='kv')(patches), 2, axis=-1
    )
    query = jnp.broadcast_to(query, (patches.shape[0], 1, width))
    heads = [self._heads(x) for x in (query, keys, values)]
    pooled = dot_product_attention(heads[0], heads[1], heads[2], sizes=sizes)
    # A single query: the heads lie side by side.
    pooled = pooled.reshape(-1, width)
    pooled = Dense(width, *settings, name='proj')(pooled)
    normal = LayerNorm(self.epsilon, self.dtype, name='norm')(pooled)
    hidden = int(width * self.mlp_ratio)
    mlp = MlpBlock(hidden, self.activation, *settings, name='mlp')
    return pooled + mlp(normal)

  def _heads(self, x: Array) -> Array:
    """`[batch, tokens, embed]` to `[batch, heads, tokens, head_dim]`."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], self.num_heads, -1), 1, 2)
