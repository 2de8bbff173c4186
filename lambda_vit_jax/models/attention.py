"""Multi-head self-attention, and the affine map that can replace it."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.layers import (
  Dense,
  accumulation_dtype,
  kernel_init,
  matrix_param,
  parameter,
)
from lambda_vit_jax.models.quantization import product_parts
from lambda_vit_jax.models.token_merging import weighted_mean

AttentionKernel = Literal['auto', 'explicit', 'xla', 'cudnn']

# cuDNN's fused attention takes half precision only, and head widths that are
# a multiple of 8 up to 128.
_CUDNN_DTYPES = ('bfloat16', 'float16')
_CUDNN_MAX_HEAD_DIM = 128


def resolve_attention_kernel(
  kernel: AttentionKernel, head_dim: int, dtype: Any
) -> AttentionKernel:
  """Returns the kernel that `auto` means on the default backend.

  Args:
    kernel: `auto`, or a kernel, which is returned unchanged. `explicit` is two
      batched products around a softmax, `xla` and `cudnn` are the
      implementations of `jax.nn.dot_product_attention`.
    head_dim: channels of one head.
    dtype: the compute dtype.
  """
  if kernel != 'auto':
    return kernel
  fused = (
    jax.default_backend() == 'gpu'
    and jnp.dtype(dtype).name in _CUDNN_DTYPES
    and head_dim % 8 == 0
    and head_dim <= _CUDNN_MAX_HEAD_DIM
  )
  return 'cudnn' if fused else 'explicit'


def dot_product_attention(
  query: Array,
  key: Array,
  value: Array,
  kernel: AttentionKernel = 'explicit',
  sizes: Array | None = None,
) -> Array:
  """Softmax attention of `query` over `key` and `value`.

  Args:
    query: `[batch, heads, queries, head_dim]`.
    key: `[batch, heads, tokens, head_dim]`.
    value: `[batch, heads, tokens, head_dim]`.
    kernel: `explicit`, `xla` or `cudnn`, see `resolve_attention_kernel`.
    sizes: number of patches in each token, `[batch, tokens]`: proportional
      attention, the same as over that many copies of each key and value.

  Returns:
    `[batch, heads, queries, head_dim]` in the dtype of `value`.
  """
  if kernel != 'explicit':
    # The library's layout is [batch, tokens, heads, head_dim].
    query, key, value = (jnp.swapaxes(t, 1, 2) for t in (query, key, value))
    bias = None
    if sizes is not None:
      batch, tokens = sizes.shape
      bias = jnp.broadcast_to(
        jnp.log(sizes)[:, None, None].astype(query.dtype),
        (batch, 1, query.shape[1], tokens),
      )
    mixed = jax.nn.dot_product_attention(
      query,
      key,
      value,
      bias,
      implementation=None if kernel == 'auto' else kernel,
    )
    return jnp.swapaxes(mixed, 1, 2)
  accumulate = accumulation_dtype(value.dtype)
  scores = jnp.einsum(
    'bhqd,bhkd->bhqk',
    query * query.shape[-1] ** -0.5,
    key,
    preferred_element_type=accumulate,
  )
  if sizes is not None:
    scores = scores + jnp.log(sizes)[:, None, None].astype(accumulate)
  # Normalising after the second product touches [queries, head_dim] numbers
  # instead of [queries, tokens]. The maximum cancels, so it has no gradient.
  largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
  weights = jnp.exp(scores - largest)
  total = weights.sum(axis=-1, keepdims=True)
  mixed = jnp.einsum(
    'bhqk,bhkd->bhqd',
    weights.astype(value.dtype),
    value,
    preferred_element_type=accumulate,
  )
  return (mixed / total).astype(value.dtype)


class FusedProjection(nn.Module):
  """The q, k and v projections of timm's `qkv`, one array for all three."""

  dtype: Any
  use_bias: bool = True
  quantization: str = 'none'

  @nn.compact
  def __call__(self, x: Array, queries: int | None) -> tuple[Array, ...]:
    """Returns q `[batch, queries, embed]`, k and v `[batch, tokens, embed]`."""
    batch, tokens, width = x.shape
    quantization = self.quantization
    kernel = matrix_param(self, quantization, kernel_init, (width, 3 * width))
    bias: Array = jnp.zeros((3 * width,), self.dtype)
    if self.use_bias:
      bias = parameter(self, 'bias', nn.initializers.zeros, (3 * width,))
      bias = bias.astype(self.dtype)
    flat = x.reshape(-1, width)

    def project(
      rows: Array, length: int, first: int, count: int
    ) -> tuple[Array, ...]:
      """`count` of q, k and v from the `first` on, each of `length` tokens."""
      some = slice(first * width, (first + count) * width)
      projected = product_parts(
        rows, kernel.columns(some.start, some.stop), count, quantization
      )
      return tuple(
        (part + part_bias).reshape(batch, length, width)
        for part, part_bias in zip(
          projected, jnp.split(bias[some], count), strict=True
        )
      )

    if queries is None:
      return project(flat, tokens, 0, 3)
    query = x[:, :queries].reshape(-1, width)
    return project(query, queries, 0, 1) + project(flat, tokens, 1, 2)


class Attention(nn.Module):
  """Multi-head self-attention with timm's parameter names."""

  num_heads: int
  kernel: AttentionKernel = 'auto'
  dtype: Any = jnp.float32
  qkv_bias: bool = True
  quantization: str = 'none'

  def __call__(
    self, x: Array, queries: int | None = None, sizes: Array | None = None
  ) -> Array:
    """`[batch, tokens, embed]` -> `[batch, queries or tokens, embed]`."""
    return self.with_keys(x, queries, sizes)[0]

  @nn.compact
  def with_keys(
    self, x: Array, queries: int | None = None, sizes: Array | None = None
  ) -> tuple[Array, Array]:
    """The output of a call, and the keys `[batch, heads, tokens, head_dim]`.

    Args:
      x: `[batch, tokens, embed]`.
      queries: compute only this many leading tokens; None for all.
      sizes: number of patches in each token, see `dot_product_attention`.
    """
    embed_dim = x.shape[-1]
    head_dim = embed_dim // self.num_heads
    projected = FusedProjection(
      self.dtype, self.qkv_bias, self.quantization, name='qkv'
    )(x, queries)
    # [batch, tokens, embed] -> [batch, heads, tokens, head_dim], once: batched
    # products in this layout are several times faster on a CPU.
    query, key, value = (
      jnp.swapaxes(t.reshape(*t.shape[:2], self.num_heads, head_dim), 1, 2)
      for t in projected
    )
    kernel = resolve_attention_kernel(self.kernel, head_dim, self.dtype)
    if sizes is not None and self.kernel == 'auto':
      # Fused kernels take log(size) in half precision, and not every shape.
      kernel = 'explicit'
    mixed = jnp.swapaxes(
      dot_product_attention(query, key, value, kernel, sizes), 1, 2
    )
    mixed = mixed.reshape(*mixed.shape[:2], embed_dim)
    project = Dense(
      embed_dim, self.dtype, quantization=self.quantization, name='proj'
    )
    return project(mixed), key


class LinearAttention(nn.Module):
  """The affine map that replaces an attention layer in mode `linear`.

  Attributes:
    inputs: `token`, and optionally `mean` (the mean over the image's tokens is
      another input) and `class_map` (the class token has its own maps).
  """

  inputs: tuple[str, ...] = ('token',)
  dtype: Any = jnp.float32
  quantization: str = 'none'

  def _map(self, rows: Array, mean: Array | None, prefix: str) -> Array:
    """`rows·kernel + bias`, plus the map of the image's mean for all rows."""

    def dense(name: str, use_bias: bool) -> Dense:
      return Dense(
        rows.shape[-1],
        self.dtype,
        nn.initializers.zeros,
        use_bias,
        self.quantization,
        name=prefix + name,
      )

    mapped = dense('linear', True)(rows)
    return mapped if mean is None else mapped + dense('mean', False)(mean)

  @nn.compact
  def __call__(
    self, x: Array, queries: int | None = None, sizes: Array | None = None
  ) -> Array:
    """n(x) `[batch, tokens, embed]` -> `[batch, queries or tokens, embed]`.

    The mean weights each token by `sizes` `[batch, tokens]`.
    """
    mean = None
    if 'mean' in self.inputs:
      wide = x.astype(accumulation_dtype(x.dtype))
      mean = weighted_mean(wide, sizes)[:, None].astype(self.dtype)
    rows = x if queries is None else x[:, :queries]
    if 'class_map' not in self.inputs:
      return self._map(rows, mean, '')
    parts = [self._map(rows[:, :1], mean, 'class_')]
    if rows.shape[1] > 1:
      parts.append(self._map(rows[:, 1:], mean, ''))
    return jnp.concatenate(parts, axis=1)


class BlendedAttention(nn.Module):
  """An attention layer and the affine map that it is diluted into.

  The parameters of both are in the same place as without the other, so that
  dropping one leaves the tree of the other.
  """

  num_heads: int
  kernel: AttentionKernel = 'auto'
  dtype: Any = jnp.float32
  qkv_bias: bool = True
  linear_inputs: tuple[str, ...] = ('token',)
  quantization: str = 'none'

  def setup(self) -> None:
    self.attention = Attention(
      self.num_heads,
      self.kernel,
      self.dtype,
      self.qkv_bias,
      self.quantization,
    )
    self.affine = LinearAttention(
      self.linear_inputs, self.dtype, self.quantization
    )
    nn.share_scope(self, self.attention)
    nn.share_scope(self, self.affine)

  def __call__(
    self,
    x: Array,
    normal: Array,
    queries: int | None = None,
    sizes: Array | None = None,
  ) -> tuple[Array, Array]:
    """The attention of norm1's output `x`, and the map of `normal`, n(x)."""
    return (
      self.attention(x, queries, sizes),
      self.affine(normal, queries, sizes),
    )
