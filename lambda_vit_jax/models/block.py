"""A block of the Vision Transformer, whose attention can be diluted and removed.

One block is `x <- r·x + a·drop_path(attn(norm1(x)))`, then
`x <- x + drop_path(mlp(norm2(x)))`. `attention_mode` picks `r` and `a`:

  mode      r      a  parameters of the attention half
  full      1      1  norm1, attn.qkv, attn.proj (and ls1)
  diluted   2 - λ  λ  the same; λ is a traced input, 1 -> 0
  skip      1      0  the same, unused: a trial of NOSE
  identity  2      -  none: what dilution ends in, x + x
  absent    1      -  none: after folding, or without compensation
  linear    1      -  attn.linear alone: x + W·n(x) + b (`linear_inputs`)

Blocks in mode `full` can merge tokens between their halves (`merging`); what
follows then works on fewer, each with a size, the patches it stands for.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array, AttentionMode
from lambda_vit_jax.models import token_merging
from lambda_vit_jax.models.attention import (
  Attention,
  AttentionKernel,
  BlendedAttention,
  LinearAttention,
)
from lambda_vit_jax.models.layers import (
  LayerNorm,
  LayerScale,
  MlpBlock,
  drop_path,
  fold_key,
)
from lambda_vit_jax.models.modes import mixes_tokens


class EncoderBlock(nn.Module):
  """One pre-norm block; the home of dilution.

  Attributes:
    attention_mode: what the attention half computes, see the module's head.
    compensation: whether dilution keeps the stream's share, `r = 2 - λ`;
      otherwise `r = 1` (the paper's ablation).
    norm_eps: epsilon of both norms; folding divides it by `4^k`.
    layer_scale: initial γ, or None for no LayerScale.
    linear_inputs: what mode `linear` maps, see `LinearAttention`.
    dilution_path: what mode `diluted` leads from and to, see `DILUTION_PATHS`.
    merge: patch tokens that mode `full` merges away behind its attention.
    num_prefix_tokens: leading tokens that are never merged.
    quantization: of the matrices, see `lambda_vit_jax.models.quantization`.
  """

  num_heads: int
  mlp_ratio: float = 4.0
  attention_mode: AttentionMode = 'full'
  compensation: bool = True
  norm_eps: float = 1e-6
  activation: str = 'gelu'
  layer_scale: float | None = None
  qkv_bias: bool = True
  drop_path_rate: float = 0.0
  linear_inputs: tuple[str, ...] = ('token',)
  dilution_path: str = 'attention'
  merge: int = 0
  num_prefix_tokens: int = 1
  quantization: str = 'none'
  attention_kernel: AttentionKernel = 'auto'
  dtype: Any = jnp.float32

  @property
  def mixes_tokens(self) -> bool:
    """Whether one token's output depends on other tokens."""
    return mixes_tokens(self.attention_mode, self.linear_inputs)

  def _norm(self, name: str, affine: bool = True) -> LayerNorm:
    return LayerNorm(self.norm_eps, self.dtype, affine, name=name)

  def _scale(self, x: Array, name: str) -> Array:
    if self.layer_scale is None:
      return x
    return LayerScale(self.layer_scale, name=name)(x)

  @nn.compact
  def __call__(
    self,
    x: Array,
    dilution_factor: Array | None = None,
    drop_path_key: Array | None = None,
    read_tokens: int | None = None,
    halvings: int | None = None,
    sizes: Array | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Applies the block.

    Args:
      x: the stream, `[batch, tokens, embed]`.
      dilution_factor: λ of this block, a scalar array; mode `diluted` only.
      drop_path_key: typed key of this block, None in evaluation.
      read_tokens: if set, only that many leading tokens are computed; keys
        and values still come from all.
      halvings: with k, `x` is `2^-k` of the stream, and so is what returns: an
        identity block, counted in k, has nothing left to do. With None the
        factor 2 is computed.
      sizes: how many patches each token stands for, `[batch, tokens]`; None
        for one each.

    Returns:
      The stream `[batch, read_tokens or tokens - merge, embed]`, and the named
      intermediates: `input`, `norm1` and `attention` (where the mode has
      them; `attention` is what the branch adds at scale 1), the stream
      `after_attention` (merged), `mlp` (what that branch adds) and `output`;
      `sizes` of the output's tokens once there are any, and `places`
      (`merging.places`) where this block merges.
    """
    taps = {'input': x}
    halved = halvings or 0
    share = 0.5**halved
    stream = x if read_tokens is None else x[:, :read_tokens]
    mode = self.attention_mode
    if mode == 'diluted' and self.dilution_path != 'attention':
      branch = (
        self._blend(x, dilution_factor, read_tokens, halved, sizes)
        if self.dilution_path == 'to_linear'
        else self._map(x, read_tokens, halved, sizes)
      )
      branch = share * drop_path(
        branch, self.drop_path_rate, fold_key(drop_path_key, 0)
      )
      blended = self.dilution_path == 'to_linear'
      stream = (
        stream + branch
        if blended
        else self._mix(stream, branch, dilution_factor)
      )
    elif mode in ('full', 'diluted'):
      taps['norm1'] = self._norm('norm1')(x, halved)
      attention, keys = Attention(
        self.num_heads,
        self.attention_kernel,
        self.dtype,
        self.qkv_bias,
        self.quantization,
        name='attn',
      ).with_keys(taps['norm1'], read_tokens, sizes)
      taps['attention'] = attention = self._scale(attention, 'ls1')
      attention = drop_path(
        attention, self.drop_path_rate, fold_key(drop_path_key, 0)
      )
      stream = self._mix(stream, share * attention, dilution_factor)
      if self.merge and read_tokens is None:
        # With `read_tokens` there is nothing left that would read the others.
        leading = self.num_prefix_tokens
        matching = token_merging.match(keys.mean(axis=1), self.merge, leading)
        stream, sizes = token_merging.merge(stream, sizes, matching, leading)
        taps['places'] = token_merging.places(matching, x.shape[1] - leading)
    elif mode == 'linear':
      # All tokens only where the map reads their mean.
      taps['norm1'] = self._norm('norm1', affine=False)(
        x if self.mixes_tokens else stream, halved
      )
      taps['attention'] = LinearAttention(
        self.linear_inputs, self.dtype, self.quantization, name='attn'
      )(taps['norm1'], read_tokens, sizes)
      stream = stream + share * taps['attention']
    elif mode == 'identity' and halvings is None:
      stream = 2.0 * stream
    taps['after_attention'] = stream
    if sizes is not None and read_tokens is None:
      taps['sizes'] = sizes

    hidden_dim = int(x.shape[-1] * self.mlp_ratio)
    mlp = MlpBlock(
      hidden_dim, self.activation, self.dtype, self.quantization, name='mlp'
    )(self._norm('norm2')(stream, halved))
    taps['mlp'] = mlp = self._scale(mlp, 'ls2')
    stream = stream + share * drop_path(
      mlp, self.drop_path_rate, fold_key(drop_path_key, 1)
    )
    taps['output'] = stream
    return stream, taps

  def _map(
    self,
    x: Array,
    read_tokens: int | None,
    halved: int,
    sizes: Array | None,
  ) -> Array:
    """The affine map of n(x), on its way out."""
    normal = self._norm('norm1', affine=False)(x, halved)
    return LinearAttention(
      self.linear_inputs, self.dtype, self.quantization, name='attn'
    )(normal, read_tokens, sizes)

  def _blend(
    self,
    x: Array,
    dilution_factor: Array | None,
    read_tokens: int | None,
    halved: int,
    sizes: Array | None,
  ) -> Array:
    """`λ·attn + (1 - λ)·(W·n(x) + b)`: a warm start's first half."""
    if dilution_factor is None:
      raise ValueError('mode `diluted` needs a dilution_factor')
    attention, affine = BlendedAttention(
      self.num_heads,
      self.attention_kernel,
      self.dtype,
      self.qkv_bias,
      self.linear_inputs,
      self.quantization,
      name='attn',
    )(
      self._norm('norm1')(x, halved),
      self._norm('norm', affine=False)(x, halved),
      read_tokens,
      sizes,
    )
    mixed = dilution_factor * self._scale(attention, 'ls1').astype(jnp.float32)
    mixed += (1.0 - dilution_factor) * affine.astype(jnp.float32)
    return mixed.astype(affine.dtype)

  def _mix(
    self, stream: Array, attention: Array, dilution_factor: Array | None
  ) -> Array:
    """`r·x + a·attn`, the one line of the method (METHOD, section 2)."""
    if self.attention_mode == 'full':
      return stream + attention
    if dilution_factor is None:
      raise ValueError('mode `diluted` needs a dilution_factor')
    # In float32: bfloat16 has 128 values of λ between 0.5 and 1.
    residual_scale = 2.0 - dilution_factor if self.compensation else 1.0
    mixed = residual_scale * stream.astype(jnp.float32)
    mixed += dilution_factor * attention.astype(jnp.float32)
    return mixed.astype(stream.dtype)
