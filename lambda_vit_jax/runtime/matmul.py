"""Float matrix products, split into pieces where that is faster on a CPU.

`runtime.compilation` decides where. A split product has the backward pass of
the whole one: otherwise every piece would make a gradient of the size of the
whole matrix.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.runtime import compilation

Activation = Callable[[Array], Array]


def product(x: Array, matrix: Array) -> Array:
  """`x·W` of `[rows, inputs]` and `[inputs, outputs]`."""
  pieces = compilation.column_pieces(x.shape[0], matrix.shape[1], x.dtype)
  if pieces == 1:
    return x @ matrix
  return jnp.concatenate(_split(pieces, x, matrix), axis=1)


def product_parts(x: Array, matrix: Array, count: int) -> tuple[Array, ...]:
  """`x·W` as `count` arrays `[rows, outputs/count]`, of equal width.

  One product that is split afterwards, or one product for each part.
  """
  rows, columns = x.shape[0], matrix.shape[1]
  if compilation.long_rows(rows, columns, x.dtype):
    return _split(count, x, matrix)
  return tuple(jnp.split(product(x, matrix), count, axis=1))


def mlp(
  x: Array,
  first: tuple[Array, Array],
  second: tuple[Array, Array],
  activation: Activation,
) -> Array:
  """`activation(x·U + b)·V + c`, if faster without the whole hidden layer.

  Args:
    x: `[..., inputs]`.
    first: U `[inputs, hidden]` and b `[hidden]`.
    second: V `[hidden, outputs]` and c `[outputs]`.
    activation: elementwise.
  """
  flat = x.reshape(-1, x.shape[-1])
  (matrix, bias), (out_matrix, out_bias) = first, second
  rows, hidden = flat.shape[0], matrix.shape[1]
  pieces = compilation.hidden_pieces(rows, hidden, x.dtype)
  if pieces == 1:
    flat = _mlp(activation, flat, matrix, bias, out_matrix)
  else:
    flat = _split_mlp(pieces, activation, flat, matrix, bias, out_matrix)
  return (flat + out_bias).reshape(*x.shape[:-1], out_matrix.shape[1])


def constant(x: Array, value: int) -> Array:
  """An int32 `[1, 1]` that the compiler believes to depend on `x`.

  A matrix combined with it cannot be copied, or converted to floats, before
  `x` is known. Otherwise XLA on a CPU does so for all matrices of the network
  at once, and folds constants, which takes more memory than the network.
  """
  if not x.size:
    return jnp.full((1, 1), value, jnp.int32)
  first = jax.lax.slice(jax.lax.stop_gradient(x), (0, 0), (1, 1))
  bits = jax.lax.bitcast_convert_type(first.astype(jnp.float32), jnp.int32)
  return jax.lax.clamp(jnp.int32(value), bits, jnp.int32(value))


def _slices(
  array: Array, pieces: int, axis: int, like: Array
) -> Iterator[Array]:
  """Equal parts of `array` along `axis`, none copied before `like` is known."""
  width = array.shape[axis] // pieces
  zero = constant(like, 0)[0, 0]
  for start in range(0, array.shape[axis], width):
    yield jax.lax.dynamic_slice_in_dim(array, zero + start, width, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _split(pieces: int, x: Array, matrix: Array) -> tuple[Array, ...]:
  return tuple(x @ part for part in _slices(matrix, pieces, 1, x))


def _split_forward(
  pieces: int, x: Array, matrix: Array
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
  return _split(pieces, x, matrix), (x, matrix)


def _split_backward(
  pieces: int, residuals: tuple[Array, Array], cotangents: tuple[Array, ...]
) -> tuple[Array, Array]:
  del pieces
  x, matrix = residuals
  cotangent = jnp.concatenate(cotangents, axis=1)
  return cotangent @ matrix.T, x.T @ cotangent


_split.defvjp(_split_forward, _split_backward)


def _mlp(
  activation: Activation, x: Array, first: Array, bias: Array, second: Array
) -> Array:
  return product(activation(product(x, first) + bias), second)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _split_mlp(
  pieces: int,
  activation: Activation,
  x: Array,
  first: Array,
  bias: Array,
  second: Array,
) -> Array:
  total = jnp.zeros((), x.dtype)
  into = _slices(first, pieces, 1, x)
  out_of = _slices(second, pieces, 0, x)
  for part, part_bias in zip(into, jnp.split(bias, pieces), strict=True):
    hidden = activation(x @ part + part_bias)
    total = total + hidden @ next(out_of)
  return total


def _split_mlp_forward(
  pieces: int, activation: Activation, *arguments: Array
) -> tuple[Array, Any]:
  del pieces
  return jax.vjp(functools.partial(_mlp, activation), *arguments)


def _split_mlp_backward(
  pieces: int, activation: Activation, backward: Any, cotangent: Array
) -> tuple[Array, ...]:
  del pieces, activation
  gradients: tuple[Array, ...] = backward(cotangent)
  return gradients


_split_mlp.defvjp(_split_mlp_forward, _split_mlp_backward)
