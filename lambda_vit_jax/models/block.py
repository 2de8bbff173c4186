"""One block of the Vision Transformer: `r·x + a·attention`, then the MLP.

  x <- r·x + a·drop_path(attn(norm1(x)))
  x <- x + drop_path(mlp(norm2(x)))

`attention_mode` picks r and a (`lambda_vit_jax.models.modes`, the table). Blocks in
mode `full` can merge tokens between the two halves (`token_merging`); what
follows works on fewer tokens, each with a size, the number of its patches.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array, AttentionMode
from lambda_vit_jax.models import token_merging
from lambda_vit_jax.models.attention import (
  Attention,
  AttentionKernel,
)
from lambda_vit_jax.models.gated_mlp import GatedMlp
from lambda_vit_jax.models.layers import (
  LayerNorm,
  LayerScale,
  MlpBlock,
  drop_path,
  fold_key,
)
from lambda_vit_jax.models.linear_attention import (
  BlendedAttention,
  LinearAttention,
)
from lambda_vit_jax.models.modes import MODES, mixes_tokens
from lambda_vit_jax.models.shortcuts import PLAIN, StreamInfo

Taps = dict[str, Array]
"""Intermediates of a block by name."""


def mix(x: Array, branch: Array | None, r: Any, a: Any) -> Array:
  """`r·x + a·branch`, the one line of the method.

  Args:
    x: `[batch, tokens, embed]`.
    branch: the same, or None for nothing.
    r: residual scale, a number or a traced scalar.
    a: attention scale, likewise.
  """
  if branch is None:
    return x if r == 1 else r * x
  if isinstance(a, float) and a == r == 1:
    return x + branch
  # In float32: bfloat16 has 128 values of λ between 0.5 and 1.
  mixed = r * x.astype(jnp.float32)
  mixed += a * branch.astype(jnp.float32)
  return mixed.astype(x.dtype)


class EncoderBlock(nn.Module):
  """A pre-norm block whose attention can be diluted, removed or replaced.

  Attributes:
    attention_mode: what the attention half computes, a key of `MODES`.
    compensation: whether dilution ends in `2·x`, with r = 2 - λ; otherwise
      r = 1 (the paper's ablation).
    norm_eps: epsilon of both norms; folding divides it by `4^k`.
    layer_scale: initial γ, or None for no LayerScale.
    linear_inputs: inputs of the map in mode `linear`, see `LinearAttention`.
    dilution_path: start and end of mode `diluted`, one of `DILUTION_PATHS`.
    merge: patch tokens that mode `full` merges away after its attention.
    num_prefix_tokens: leading tokens, which are no patches and never merged.
    grid_size: patches along height and width.
    key_bias: whether keys have a bias, where queries and values have.
    fused_qkv: whether one array projects to all three.
    rotary: a key of `rotary.ROTARIES`, or empty.
    relative_bias: whether scores have a bias by relative position.
    mlp_dim: width of the MLP's hidden layer; with 0 there is no MLP.
    mlp_kind: of `gated_mlp.MLPS`.
    mlp_norm: whether a gated hidden layer is normalised.
    pre_norm_eps: epsilon of that norm; folding does not change it.
    quantization: of the matrices, see `lambda_vit_jax.models.quantization`.
  """

  num_heads: int
  mlp_dim: int
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
  grid_size: tuple[int, int] = (0, 0)
  key_bias: bool = True
  fused_qkv: bool = True
  rotary: str = ''
  relative_bias: bool = False
  mlp_kind: str = 'plain'
  mlp_norm: bool = False
  pre_norm_eps: float = 1e-6
  quantization: str = 'none'
  attention_kernel: AttentionKernel = 'auto'
  dtype: Any = jnp.float32

  @property
  def mixes_tokens(self) -> bool:
    """Whether one token's output depends on other tokens."""
    return mixes_tokens(self.attention_mode, self.linear_inputs)

  @nn.compact
  def __call__(
    self,
    x: Array,
    dilution_factor: Array | None = None,
    drop_path_key: Array | None = None,
    info: StreamInfo = PLAIN,
  ) -> tuple[Array, Taps]:
    """Applies the block.

    Args:
      x: the stream, `[batch, tokens, embed]`.
      dilution_factor: λ of this block, a scalar array; mode `diluted` only.
      drop_path_key: typed key of this block, None in evaluation.
      info: sizes of merged tokens, and which shortcuts are taken.

    Returns:
      The stream `[batch, read_tokens or tokens - merge, embed]`, and the named
      intermediates: `input`, `norm1` and `attention` (where the mode has
      them; `attention` is what the branch adds at scale 1), the stream
      `after_attention` (merged), `mlp` (what that branch adds, if there is
      one) and `output`;
      `sizes` of the output's tokens once any were merged, and `places`
      (`token_merging.places`) where this block merges.
    """
    taps = {'input': x}
    residual = info.read(x)
    attn, keys = self._attention_half(x, dilution_factor, info, taps)
    # An affine map is no attention: stochastic depth never drops it.
    rate = 0.0 if self.attention_mode == 'linear' else self.drop_path_rate
    if attn is not None:
      attn = drop_path(attn, rate, fold_key(drop_path_key, 0))
      attn = info.branch_scale * attn
    r, a = self._scales(dilution_factor, info)
    x = mix(residual, attn, r, a)
    x = self._merge_tokens(x, keys, info, taps)
    taps['after_attention'] = x
    if self.mlp_dim:
      mlp = self.mlp_layer(name='mlp')(
        self._norm('norm2')(x, info.norm_halvings)
      )
      taps['mlp'] = mlp = self._scale(mlp, 'ls2')
      mlp = drop_path(mlp, self.drop_path_rate, fold_key(drop_path_key, 1))
      x = x + info.branch_scale * mlp
    taps['output'] = x
    return x, taps

  def _scales(
    self, dilution_factor: Array | None, info: StreamInfo
  ) -> tuple[Any, Any]:
    """The scales r and a of the mixing line."""
    r, a = MODES[self.attention_mode].scales(dilution_factor)
    if self.attention_mode == 'diluted':
      if self.dilution_path == 'to_linear':
        # λ is inside the blend.
        return 1.0, 1.0
      if not self.compensation:
        return 1.0, a
    if self.attention_mode == 'identity' and info.halvings is not None:
      # This block's factor 2 is among the halvings.
      return 1.0, a
    return r, a

  def _attention_half(
    self, x: Array, dilution_factor: Any, info: StreamInfo, taps: Taps
  ) -> tuple[Array | None, Array | None]:
    """What is added at a = 1 (None for nothing), and the keys if any."""
    if MODES[self.attention_mode].adds_nothing:
      return None, None
    if self.attention_mode == 'linear':
      return self._affine_map(x, info, taps), None
    if self.attention_mode == 'diluted':
      if self.dilution_path == 'to_linear':
        return self._blend(x, dilution_factor, info), None
      if self.dilution_path == 'from_linear':
        return self._affine_map(x, info, taps), None
    return self._attention(x, info, taps)

  def _attention(
    self, x: Array, info: StreamInfo, taps: Taps
  ) -> tuple[Array, Array]:
    """`attn(norm1(x))`, and its keys `[batch, heads, tokens, head_dim]`."""
    taps['norm1'] = self._norm('norm1')(x, info.norm_halvings)
    attention, keys = self.attention_layer(name='attn')(
      taps['norm1'], info.read_tokens, info.sizes
    )
    taps['attention'] = self._scale(attention, 'ls1')
    return taps['attention'], keys

  def _affine_map(self, x: Array, info: StreamInfo, taps: Taps) -> Array:
    """`W·n(x) + b`."""
    # All tokens only where the map reads their mean.
    x = x if self.mixes_tokens else info.read(x)
    norm = self._norm('norm1', affine=False)
    taps['norm1'] = norm(x, info.norm_halvings)
    taps['attention'] = self._linear_layer(name='attn')(
      taps['norm1'], info.read_tokens, info.sizes
    )
    return taps['attention']

  def _blend(self, x: Array, dilution_factor: Any, info: StreamInfo) -> Array:
    """`λ·attn + (1 - λ)·(W·n(x) + b)`, from attention to a fitted map."""
    layers = self.attention_layer(parent=None), self._linear_layer(parent=None)
    attention, affine = BlendedAttention(*layers, name='attn')(
      self._norm('norm1')(x, info.norm_halvings),
      self._norm('norm', affine=False)(x, info.norm_halvings),
      info.read_tokens,
      info.sizes,
    )
    mixed = dilution_factor * self._scale(attention, 'ls1').astype(jnp.float32)
    mixed += (1.0 - dilution_factor) * affine.astype(jnp.float32)
    return mixed.astype(affine.dtype)

  def _merge_tokens(
    self, x: Array, keys: Array | None, info: StreamInfo, taps: Taps
  ) -> Array:
    """Merges similar tokens; adds `sizes` and `places` to `taps`."""
    if info.read_tokens is not None:
      # Nothing is left that would read the other tokens.
      return x
    sizes = info.sizes
    if self.merge and keys is not None:
      leading = self.num_prefix_tokens
      tokens = x.shape[1]
      matching = token_merging.match(keys.mean(axis=1), self.merge, leading)
      x, sizes = token_merging.merge(x, sizes, matching, leading)
      taps['places'] = token_merging.places(matching, tokens - leading)
    if sizes is not None:
      taps['sizes'] = sizes
    return x

  def attention_layer(self, **place: Any) -> Attention:
    """The attention layer; `place` is a name or a parent."""
    return Attention(
      self.num_heads,
      self.attention_kernel,
      self.dtype,
      self.qkv_bias,
      self.quantization,
      self.key_bias,
      self.fused_qkv,
      self.rotary,
      self.relative_bias,
      self.num_prefix_tokens,
      self.grid_size,
      **place,
    )

  def mlp_layer(self, **place: Any) -> MlpBlock | GatedMlp:
    """The MLP; likewise."""
    if self.mlp_kind == 'plain':
      return MlpBlock(
        self.mlp_dim, self.activation, self.dtype, self.quantization, **place
      )
    return GatedMlp(
      self.mlp_dim,
      self.mlp_kind == 'swiglu_packed',
      self.pre_norm_eps if self.mlp_norm else None,
      self.dtype,
      self.quantization,
      **place,
    )

  def _linear_layer(self, **place: Any) -> LinearAttention:
    return LinearAttention(
      self.linear_inputs,
      self.num_heads,
      self.num_prefix_tokens,
      self.grid_size,
      self.dtype,
      self.quantization,
      **place,
    )

  def _norm(self, name: str, affine: bool = True) -> LayerNorm:
    return LayerNorm(self.norm_eps, self.dtype, affine, name=name)

  def _scale(self, x: Array, name: str) -> Array:
    if self.layer_scale is None:
      return x
    return LayerScale(self.layer_scale, name=name)(x)
