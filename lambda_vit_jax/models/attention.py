"""Multi-head self-attention."""

import functools
import logging
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
from lambda_vit_jax.models.relative_bias import (
  TABLE,
  relative_index,
  table_rows,
)
from lambda_vit_jax.models.rotary import rotate

AttentionKernel = Literal['auto', 'explicit', 'xla', 'cudnn']

# cuDNN's fused attention takes half precision only, and head widths that are
# a multiple of 8 up to 128.
_CUDNN_DTYPES = ('bfloat16', 'float16')
_CUDNN_MAX_HEAD_DIM = 128
# NVIDIA's Ampere.
_CUDNN_CAPABILITY = 8.0

_LOG = logging.getLogger(__name__)


@functools.cache
def device_without_cudnn() -> str:
  """Why the default GPU has no fused attention; '' if it has.

  It is logged once: on such a device the products are explicit.
  """
  device = jax.devices()[0]
  # ROCm has names in place of numbers: gfx942.
  capability = str(getattr(device, 'compute_capability', ''))
  try:
    runs = float(capability) >= _CUDNN_CAPABILITY
  except ValueError:
    runs = False
  if runs:
    return ''
  reason = (
    f'{device.device_kind} (compute capability {capability or "unknown"}) has '
    'no fused attention of cuDNN, which needs an NVIDIA GPU of 8.0 or later'
  )
  _LOG.warning('%s: attention is computed by explicit products', reason)
  return reason


def resolve_attention_kernel(
  kernel: AttentionKernel,
  head_dim: int,
  dtype: Any,
  queries: int | None = None,
) -> AttentionKernel:
  """Returns the kernel that `auto` means on the default backend.

  Args:
    kernel: `auto`, or a kernel, which is returned unchanged. `explicit` is two
      batched products around a softmax, `xla` and `cudnn` are the
      implementations of `jax.nn.dot_product_attention`.
    head_dim: channels of one head.
    dtype: the compute dtype.
    queries: tokens that attend; None for all. A single one is a product of a
      vector and a matrix, which cuDNN does not take in every version.
  """
  if kernel != 'auto':
    return kernel
  fused = (
    jax.default_backend() == 'gpu'
    and jnp.dtype(dtype).name in _CUDNN_DTYPES
    and head_dim % 8 == 0
    and head_dim <= _CUDNN_MAX_HEAD_DIM
    and queries != 1
    and not device_without_cudnn()
  )
  return 'cudnn' if fused else 'explicit'


def dot_product_attention(
  query: Array,
  key: Array,
  value: Array,
  kernel: AttentionKernel = 'explicit',
  sizes: Array | None = None,
  bias: Array | None = None,
) -> Array:
  """Softmax attention of `query` over `key` and `value`.

  Args:
    query: `[batch, heads, queries, head_dim]`.
    key: `[batch, heads, tokens, head_dim]`.
    value: `[batch, heads, tokens, head_dim]`.
    kernel: `explicit`, `xla` or `cudnn`, see `resolve_attention_kernel`.
    sizes: number of patches in each token, `[batch, tokens]`: proportional
      attention, the same as over that many copies of each key and value.
    bias: of the scores, `[heads, queries, tokens]`.

  Returns:
    `[batch, heads, queries, head_dim]` in the dtype of `value`.
  """
  if kernel != 'explicit':
    # The library's layout is [batch, tokens, heads, head_dim].
    query, key, value = (jnp.swapaxes(t, 1, 2) for t in (query, key, value))
    added: Array | None = None
    if bias is not None:
      added = bias[None].astype(query.dtype)
    if sizes is not None:
      logs = jnp.log(sizes)[:, None, None].astype(query.dtype)
      logs = jnp.broadcast_to(
        logs, (*logs.shape[:2], query.shape[1], sizes.shape[1])
      )
      added = logs if added is None else added + logs
    mixed = jax.nn.dot_product_attention(
      query,
      key,
      value,
      added,
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
  if bias is not None:
    scores = scores + bias.astype(accumulate)
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
  key_bias: bool = True

  @nn.compact
  def __call__(self, x: Array, queries: int | None) -> tuple[Array, ...]:
    """Returns q `[batch, queries, embed]`, k and v `[batch, tokens, embed]`."""
    width = x.shape[-1]
    shape = (width, 3 * width)
    kernel = matrix_param(self, self.quantization, kernel_init, shape)
    bias: Array = jnp.zeros(shape[1:], self.dtype)
    if self.use_bias and self.key_bias:
      bias = parameter(self, 'bias', nn.initializers.zeros, shape[1:])
      bias = bias.astype(self.dtype)
    elif self.use_bias:
      zeros = nn.initializers.zeros
      of_query = parameter(self, 'q_bias', zeros, (width,))
      of_value = parameter(self, 'v_bias', zeros, (width,))
      parts = (of_query, jnp.zeros_like(of_query), of_value)
      bias = jnp.concatenate(parts).astype(self.dtype)

    def project(rows: Array, first: int, count: int) -> tuple[Array, ...]:
      """`count` of q, k and v, from the `first` on."""
      start, stop = first * width, (first + count) * width
      flat, columns = rows.reshape(-1, width), kernel.columns(start, stop)
      parts = product_parts(flat, columns, count, self.quantization)
      biases = jnp.split(bias[start:stop], count)
      return tuple(
        (part + part_bias).reshape(rows.shape)
        for part, part_bias in zip(parts, biases, strict=True)
      )

    if queries is None:
      return project(x, 0, 3)
    return project(x[:, :queries], 0, 1) + project(x, 1, 2)


class Attention(nn.Module):
  """Multi-head self-attention with timm's parameter names.

  Attributes:
    qkv_bias: whether queries, keys and values have a bias.
    key_bias: whether keys have one too.
    fused_qkv: one array for all three, else one each.
    rotary: a key of `rotary.ROTARIES`, or empty.
    relative_bias: whether scores have a bias by relative position.
    num_prefix_tokens: leading tokens, which have no place.
    grid_size: patches along height and width.
  """

  num_heads: int
  kernel: AttentionKernel = 'auto'
  dtype: Any = jnp.float32
  qkv_bias: bool = True
  quantization: str = 'none'
  key_bias: bool = True
  fused_qkv: bool = True
  rotary: str = ''
  relative_bias: bool = False
  num_prefix_tokens: int = 1
  grid_size: tuple[int, int] = (0, 0)

  def _project(self, x: Array, queries: int | None) -> tuple[Array, ...]:
    """See `FusedProjection`."""
    settings = self.dtype, self.quantization
    if self.fused_qkv:
      fused = FusedProjection(
        self.dtype,
        self.qkv_bias,
        self.quantization,
        self.key_bias,
        name='qkv',
      )
      return fused(x, queries)

    def dense(name: str, use_bias: bool) -> Dense:
      return Dense(
        x.shape[-1], *settings, use_bias=use_bias, name=f'{name}_proj'
      )

    key = dense('k', self.qkv_bias and self.key_bias)
    rows = x if queries is None else x[:, :queries]
    query, value = (dense(name, self.qkv_bias) for name in 'qv')
    return query(rows), key(x), value(x)

  def _bias(self, queries: int | None) -> Array:
    """Bias of the scores by relative position, `[heads, queries, tokens]`."""
    shape = table_rows(self.grid_size), self.num_heads
    table = parameter(self, TABLE, nn.initializers.zeros, shape)
    index = relative_index(self.grid_size)[:queries]
    return jnp.moveaxis(jnp.asarray(table)[index], -1, 0)

  @nn.compact
  def __call__(
    self, x: Array, queries: int | None = None, sizes: Array | None = None
  ) -> tuple[Array, Array]:
    """Attends from the first `queries` tokens, or from all.

    Args:
      x: `[batch, tokens, embed]`.
      queries: a number of leading tokens; None for all.
      sizes: number of patches in each token, see `dot_product_attention`.

    Returns:
      `[batch, queries or tokens, embed]`, and the keys, `[batch, heads, tokens,
      head_dim]`.
    """
    embed_dim = x.shape[-1]
    head_dim = embed_dim // self.num_heads
    projected = self._project(x, queries)
    # [batch, tokens, embed] -> [batch, heads, tokens, head_dim], once: batched
    # products in this layout are several times faster on a CPU.
    query: Array
    key: Array
    query, key, value = (
      jnp.swapaxes(t.reshape(*t.shape[:2], self.num_heads, head_dim), 1, 2)
      for t in projected
    )
    if self.rotary:
      place = self.rotary, self.grid_size, self.num_prefix_tokens
      query, key = (rotate(x, *place) for x in (query, key))
    kernel = resolve_attention_kernel(
      self.kernel, head_dim, self.dtype, queries
    )
    bias = self._bias(queries) if self.relative_bias else None
    added = sizes is not None or bias is not None
    if added and self.kernel == 'auto':
      # Fused kernels take what is added in half precision, and not every shape.
      kernel = 'explicit'
    mixed = dot_product_attention(query, key, value, kernel, sizes, bias)
    mixed = jnp.swapaxes(mixed, 1, 2)
    mixed = mixed.reshape(*mixed.shape[:2], embed_dim)
    # Kept only for callers that ask for it (`pieces.head_outputs`).
    self.sow('heads', 'offered', mixed)
    project = Dense(embed_dim, self.dtype, self.quantization, name='proj')
    return project(mixed), key
