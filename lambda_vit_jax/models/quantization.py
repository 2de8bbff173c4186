"""Matrices as 8-bit integers with one scale per output channel.

A matrix W `[inputs, outputs]` is stored as q and s with

  s[j] = max_i |W[i, j]| / 127,    q[i, j] = round(W[i, j] / s[j]),

which is symmetric: 0 stays 0 and there is no offset. The error of each number
is at most s[j] / 2. In a tree, `kernel_scale` is next to each quantised
`kernel`; norms, biases, tokens and positions stay as they are.

There are two ways to multiply by it: `weights` converts the integers to floats,
for a file of a quarter of the size; `dynamic` also quantises every token at run
time and multiplies integers, whose sums are exact in 32 bits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.runtime import matmul

QUANTIZATIONS = ('none', 'weights', 'dynamic')
"""Values of a module's `quantization`."""

SCALE = 'kernel_scale'
"""Name of the scales `[outputs]` of a `kernel`, next to it in the tree."""

_LEVELS = 127

MOST_INPUTS = (2**31 - 1) // _LEVELS**2
"""Number of products of 8-bit numbers whose sum always fits in 32 bits."""

# Smaller magnitudes have no scale in float32's normal range; they become 0.
_SMALLEST = _LEVELS * float(jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A matrix `[inputs, outputs]`: floats, or integers and their scales.

  Attributes:
    values: int8 where there are scales.
    scale: float32 `[outputs]`, or None.
  """

  values: Array
  scale: Array | None = None

  def columns(self, start: int, stop: int | None = None) -> 'Matrix':
    """The output channels from `start` to `stop`."""
    scale = None if self.scale is None else self.scale[start:stop]
    return Matrix(self.values[:, start:stop], scale)


def quantize(x: Array, axis: int | tuple[int, ...]) -> tuple[Array, Array]:
  """`x` as int8 times float32 scales, one for each slice along `axis`.

  Args:
    x: floats. The scale of a slice that is not finite is not finite either.
    axis: of the largest magnitude.

  Returns:
    int8 of the shape of `x`, -127 to 127, and the scales with `axis` kept as
    1. A slice of zeros (or of numbers below 1e-36) has scale 1.
  """
  x = x.astype(jnp.float32)
  largest = jnp.abs(x).max(axis=axis, keepdims=True)
  scale = jnp.where(largest <= _SMALLEST, 1.0, largest / _LEVELS)
  return jnp.round(x / scale).astype(jnp.int8), scale


@jax.jit
def _quantize_matrix(kernel: Array) -> tuple[Array, Array]:
  """A kernel with its output channels last, and scales `[outputs]`."""
  values, scale = quantize(kernel, tuple(range(kernel.ndim - 1)))
  return values, scale.reshape(-1)


def product(x: Array, matrix: Matrix, quantization: str = 'none') -> Array:
  """`x·W` for `x` `[rows, inputs]`, in the dtype of `x`.

  Args:
    x: one token a row.
    matrix: quantised unless `quantization` is `none`.
    quantization: of `QUANTIZATIONS`.

  Raises:
    ModelError: `dynamic` with more inputs than 32-bit sums can hold.
  """
  if matrix.scale is None:
    return matmul.product(x, matrix.values.astype(x.dtype))
  wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
  scale = matrix.scale.astype(wide)
  if quantization == 'dynamic':
    values, of_rows = quantize(x, -1)
    sums = integer_product(values, matrix.values).astype(wide)
    return (sums * of_rows.astype(wide) * scale).astype(x.dtype)
  one = matmul.constant(x, 1).astype(x.dtype)
  floats = matrix.values.astype(x.dtype) * one
  sums = jnp.matmul(x, floats, preferred_element_type=wide)
  return (sums * scale).astype(x.dtype)


def product_parts(
  x: Array, matrix: Matrix, count: int, quantization: str = 'none'
) -> tuple[Array, ...]:
  """`product` as `count` arrays `[rows, outputs/count]`."""
  if matrix.scale is None:
    return matmul.product_parts(x, matrix.values.astype(x.dtype), count)
  return tuple(jnp.split(product(x, matrix, quantization), count, axis=1))


def integer_product(x: Array, y: Array) -> Array:
  """The exact product of int8 `[rows, inputs]` and `[inputs, outputs]`, int32.

  Raises:
    ModelError: sums that 32 bits might not hold.
  """
  if x.shape[-1] > MOST_INPUTS:
    raise ModelError(
      f'a matrix has {x.shape[-1]} inputs; 8-bit arithmetic sums up at most '
      f'{MOST_INPUTS} products in 32 bits: use quantization `weights`'
    )
  contract = (((1,), (0,)), ((), ()))
  return jax.lax.dot_general(x, y, contract, preferred_element_type=jnp.int32)


def quantize_tree(params: Mapping[str, Any]) -> Params:
  """Every `kernel` of a tree as int8 with its scales; idempotent."""
  found = {
    name: quantize_tree(leaf) if isinstance(leaf, Mapping) else leaf
    for name, leaf in params.items()
  }
  if 'kernel' in params and SCALE not in params:
    found['kernel'], found[SCALE] = _quantize_matrix(params['kernel'])
  return found


def dequantize_tree(params: Mapping[str, Any]) -> Params:
  """The float32 values of a quantised tree; idempotent."""
  found = {
    name: dequantize_tree(leaf) if isinstance(leaf, Mapping) else leaf
    for name, leaf in params.items()
    if name != SCALE
  }
  if SCALE in params:
    kernel = jnp.asarray(params['kernel']).astype(jnp.float32)
    found['kernel'] = kernel * params[SCALE]
  return found
