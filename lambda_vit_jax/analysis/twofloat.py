"""Two-float arithmetic: a number as the unevaluated sum of two floats.

It has twice the digits of float32, for devices without float64. Compilers that
fuse may compute a value in several places, and contract a product with a sum in
one place but not in another. Therefore the larger part of every result is an
exact function of larger parts, and never a sum with a rounded product. Results
are not renormalised: the smaller part may be as large as 2^-12 of the number,
and its own last digit is 2^-36 of it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array

Pairs = list[tuple[Array, Array]]
"""Two-float numbers, each as (larger part, smaller part)."""


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
  """`a + b` rounded, and its rounding error (Knuth).

  Neither may be a rounded product or quotient, which a compiler may contract
  with one of these sums but not the other; see `product` and `divide`.
  """
  total = a + b
  share = total - a
  return total, (a - (total - share)) + (b - share)


def add(
  high: Array, low: Array, other: Array, other_low: Array
) -> tuple[Array, Array]:
  """Sum of two two-float numbers, not renormalised."""
  total, error = two_sum(high, other)
  return total, error + (low + other_low)


def product(a: Array, b: Array) -> tuple[Array, Array]:
  """`a·b` as a two-float number whose larger part is an exact product.

  The larger part multiplies the upper halves of the digits (Veltkamp's
  split, by masking), so that contracting it with a sum changes nothing.
  """
  a_high, b_high = _upper_half(a), _upper_half(b)
  a_low, b_low = a - a_high, b - b_high
  return a_high * b_high, a_high * b_low + a_low * b_high + a_low * b_low


def divide(high: Array, low: Array, divisor: Array) -> tuple[Array, Array]:
  """A two-float number over a float, as a two-float number."""
  # Dropping digits keeps the quotient from being contracted with a sum:
  # compilers make it a product with the divisor's reciprocal.
  quotient = _upper_half(high / divisor)
  covered, covered_low = product(quotient, divisor)
  return quotient, ((high - covered) - covered_low + low) / divisor


def _upper_half(x: Array) -> Array:
  """`x` with the lower half of its digits cleared."""
  wide = x.dtype == jnp.float64
  bits, dropped = (jnp.uint64, 27) if wide else (jnp.uint32, 12)
  number = jax.lax.bitcast_convert_type(x, bits) >> bits(dropped)
  return jax.lax.bitcast_convert_type(number << bits(dropped), x.dtype)


def sum_rows(
  rows: Array, keep: Array, terms: Callable[[Array, Array], Pairs]
) -> Pairs:
  """Sums `terms(row, keep)` over all rows in two-float arithmetic.

  One loop adds slabs of about √rows rows, a second one the rows of the resulting
  slab. They are loops because XLA's CPU compiler fuses an unrolled tree of sums
  and recomputes it for each of its readers.

  Args:
    rows: `[rows, channels]`, at least one.
    keep: `[rows, 1]` bool.
    terms: `[slab, channels]` and `[slab, 1]` to pairs `[slab, channels]`.
  """
  number, channels = rows.shape
  slab = 1 << ((number - 1).bit_length() + 1) // 2
  steps = -(-number // slab)
  if missing := steps * slab - number:
    rows = jnp.pad(rows, ((0, missing), (0, 0)))
    keep = jnp.pad(keep, ((0, missing), (0, 0)))

  def add_pairs(total: Pairs, pairs: Pairs) -> tuple[Pairs, None]:
    return [add(*a, *b) for a, b in zip(total, pairs, strict=True)], None

  # Derived from `rows` so that it varies over the same mesh axes.
  nothing = jnp.where(jnp.zeros((slab, 1), bool), rows[:slab], 0.0)
  shapes = jax.eval_shape(terms, rows[:slab], keep[:slab])
  start: Pairs = [(nothing, nothing) for _ in shapes]
  chunks = rows.reshape(steps, slab, channels), keep.reshape(steps, slab, 1)
  total, _ = jax.lax.scan(
    lambda total, chunk: add_pairs(total, terms(*chunk)), start, chunks
  )
  start = [(nothing[0], nothing[0]) for _ in shapes]
  return jax.lax.scan(add_pairs, start, total)[0]
