"""Products of floats, cut where that is faster (`compilation` says where).

A cut product has a backward pass of its own, that of the whole one: by itself,
every piece would make a gradient of the whole matrix's size.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.runtime import compilation

Activation = Callable[[Array], Array]


def whole(x: Array, matrix: Array) -> Array:
  """`x·W` of `[rows, inputs]` and `[inputs, outputs]`."""
  pieces = compilation.column_pieces(x.shape[0], matrix.shape[1], x.dtype)
  if pieces == 1:
    return x @ matrix
  return jnp.concatenate(_cut(pieces, x, matrix), axis=1)


def parts(x: Array, matrix: Array, count: int) -> tuple[Array, ...]:
  """`x·W` as `count` arrays `[rows, outputs/count]`, of equal width.

  One product that is split behind, or a product for each.
  """
  rows, columns = x.shape[0], matrix.shape[1]
  if compilation.long_rows(rows, columns, x.dtype):
    return _cut(count, x, matrix)
  return tuple(jnp.split(whole(x, matrix), count, axis=1))


def perceptron(
  x: Array, first: Array, bias: Array, second: Array, activation: Activation
) -> Array:
  """`activation(x·U + b)·V`, whose hidden layer need never be there at once.

  Args:
    x: `[rows, inputs]`.
    first: U, `[inputs, hidden]`.
    bias: b, `[hidden]`.
    second: V, `[hidden, outputs]`.
    activation: of each number by itself.
  """
  rows, hidden = x.shape[0], first.shape[1]
  pieces = compilation.hidden_pieces(rows, hidden, x.dtype)
  if pieces == 1:
    return _perceptron(activation, x, first, bias, second)
  return _cut_perceptron(pieces, activation, x, first, bias, second)


def constant(x: Array, value: int) -> Array:
  """An int32 `[1, 1]`, which a compiler takes for something made from `x`.

  With it, a matrix cannot be copied or made floats before its product is due.
  Else a CPU's schedule does so with all matrices of the network at once, and
  constants are folded: more memory than the network itself takes.
  """
  if not x.size:
    return jnp.full((1, 1), value, jnp.int32)
  first = jax.lax.slice(jax.lax.stop_gradient(x), (0, 0), (1, 1))
  bits = jax.lax.bitcast_convert_type(first.astype(jnp.float32), jnp.int32)
  return jax.lax.clamp(jnp.int32(value), bits, jnp.int32(value))


def _slices(
  array: Array, pieces: int, axis: int, like: Array
) -> Iterator[Array]:
  """Equal parts of `array` along `axis`, none copied before `like` is there."""
  width = array.shape[axis] // pieces
  zero = constant(like, 0)[0, 0]
  for start in range(0, array.shape[axis], width):
    yield jax.lax.dynamic_slice_in_dim(array, zero + start, width, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cut(pieces: int, x: Array, matrix: Array) -> tuple[Array, ...]:
  return tuple(x @ part for part in _slices(matrix, pieces, 1, x))


def _cut_forward(
  pieces: int, x: Array, matrix: Array
) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
  return _cut(pieces, x, matrix), (x, matrix)


def _cut_backward(
  pieces: int, residuals: tuple[Array, Array], cotangents: tuple[Array, ...]
) -> tuple[Array, Array]:
  del pieces
  x, matrix = residuals
  cotangent = jnp.concatenate(cotangents, axis=1)
  return cotangent @ matrix.T, x.T @ cotangent


_cut.defvjp(_cut_forward, _cut_backward)


def _perceptron(
  activation: Activation, x: Array, first: Array, bias: Array, second: Array
) -> Array:
  return whole(activation(whole(x, first) + bias), second)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cut_perceptron(
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


def _cut_perceptron_forward(
  pieces: int, activation: Activation, *arguments: Array
) -> tuple[Array, Any]:
  del pieces
  return jax.vjp(functools.partial(_perceptron, activation), *arguments)


def _cut_perceptron_backward(
  pieces: int, activation: Activation, backward: Any, cotangent: Array
) -> tuple[Array, ...]:
  del pieces, activation
  gradients: tuple[Array, ...] = backward(cotangent)
  return gradients


_cut_perceptron.defvjp(_cut_perceptron_forward, _cut_perceptron_backward)
