"""Ridge regression of affine maps from streamed second moments.

  W = (X'X + ridge·mean·I)^-1 X'Y,  b = mean(y) - mean(x)·W

of centred samples X and Y. Each batch leaves only sums of products; the maps,
their errors and the choice of the ridge are closed forms of these sums. The
products are of deviations from the batch's own mean, in float32 on the device;
everything after that is float64 on the host. So a large mean costs no digits,
and how samples are split into batches matters only by the rounding of those
products.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from lambda_vit_jax.core.errors import UsageError, not_finite
from lambda_vit_jax.core.typing import Array

# Relative to the largest eigenvalue: in sums of float32 products, smaller ones
# cannot be told from zero.
_CUTOFF = float(np.finfo(np.float32).eps)

# Relative rounding error of a float32 activation.
_ROUNDING = 16 * _CUTOFF

Sums = tuple[Array, ...]
"""Returned by `batch_sums`; leading axes, if any, are folds."""


def batch_sums(inputs: Array, outputs: Array, weights: Array) -> Sums:
  """Weighted sums of one batch around its own mean; traceable.

  Args:
    inputs: `[samples, inputs]`.
    outputs: `[samples, outputs]`.
    weights: `[samples]`, 0 (or False) for padding; of order 1.

  Returns:
    float32: the sum of weights; the centres of inputs and of outputs; the sums
    of deviations from these two; then the sums of products of deviations, input
    × input, input × output, and output² (`[outputs]`).
  """
  weights = weights.astype(jnp.float32)[:, None]
  count = weights.sum()
  centres, totals, deviations = [], [], []
  for features in (inputs, outputs):
    features = jnp.where(weights > 0.0, features.astype(jnp.float32), 0.0)
    total = (weights * features).sum(axis=0)
    centre = jnp.where(count > 0.0, total / count, 0.0)
    deviation = jnp.where(weights > 0.0, features - centre, 0.0)
    centres.append(centre)
    # The rounded mean is not exactly the mean: the host corrects by these.
    totals.append((weights * deviation).sum(axis=0))
    deviations.append(deviation)
  x, y = deviations
  weighted = (weights * x).T
  product = functools.partial(jnp.matmul, precision='highest')
  return (
    count,
    *centres,
    *totals,
    product(weighted, x),
    product(weighted, y),
    (weights * y * y).sum(axis=0),
  )


@dataclasses.dataclass(frozen=True)
class AffineMap:
  """`y = x·kernel + bias`, float64.

  Attributes:
    kernel: `[inputs, outputs]`.
    bias: `[outputs]`.
  """

  kernel: np.ndarray
  bias: np.ndarray


@dataclasses.dataclass(frozen=True)
class CrossMoments:
  """Centred second moments of inputs and outputs, float64 on the host.

  Attributes:
    count: samples, or the sum of their weights.
    mean_in: `[inputs]`.
    mean_out: `[outputs]`.
    in_in: `[inputs, inputs]`, sum of products of deviations.
    in_out: `[inputs, outputs]`.
    out_out: `[outputs]`, the diagonal.
  """

  count: float
  mean_in: np.ndarray
  mean_out: np.ndarray
  in_in: np.ndarray
  in_out: np.ndarray
  out_out: np.ndarray

  @classmethod
  def from_sums(cls, *batches: Sums) -> 'CrossMoments':
    """Moments of one batch or of several, from `batch_sums`."""
    total = Accumulator()
    for sums in batches:
      total.add(sums)
    return total.moments()

  def merge(self, other: 'CrossMoments') -> 'CrossMoments':
    """Moments of the union of the samples (Chan)."""
    count = self.count + other.count
    share = other.count / (count or 1.0)
    step_in = other.mean_in - self.mean_in
    step_out = other.mean_out - self.mean_out
    weight = self.count * share
    return CrossMoments(
      count,
      self.mean_in + share * step_in,
      self.mean_out + share * step_out,
      self.in_in + other.in_in + weight * np.outer(step_in, step_in),
      self.in_out + other.in_out + weight * np.outer(step_in, step_out),
      self.out_out + other.out_out + weight * step_out**2,
    )

  def of_inputs(self, columns: np.ndarray) -> 'CrossMoments':
    """Moments of some of the inputs, given their indices."""
    return dataclasses.replace(
      self,
      mean_in=self.mean_in[columns],
      in_in=self.in_in[np.ix_(columns, columns)],
      in_out=self.in_out[columns],
    )

  def beyond(self, affine: AffineMap) -> 'CrossMoments':
    """Moments of the same inputs, with the residuals of `affine` as outputs."""
    kernel = affine.kernel
    explained = self.in_in @ kernel
    return dataclasses.replace(
      self,
      mean_out=self.mean_out - self.mean_in @ kernel - affine.bias,
      in_out=self.in_out - explained,
      out_out=self.out_out
      - 2.0 * (kernel * self.in_out).sum(axis=0)
      + (kernel * explained).sum(axis=0),
    )

  def squared_error(self, affine: AffineMap) -> float:
    """Sum of `|y - affine(x)|²` over the samples."""
    left = self.beyond(affine)
    return float(left.out_out.sum() + self.count * (left.mean_out**2).sum())


class Accumulator:
  """Adds up the sums of many batches in float64."""

  def __init__(self) -> None:
    self._products: list[np.ndarray] = []
    # Per batch: samples, centres, and the sums of deviations from these.
    self._small: list[list[np.ndarray]] = []

  @property
  def is_empty(self) -> bool:
    """Whether no batch was added yet."""
    return not self._products

  def add(self, sums: Sums) -> None:
    """Adds one batch, from `batch_sums`."""
    small = [np.asarray(leaf, np.float64) for leaf in sums[:5]]
    products = [np.asarray(leaf) for leaf in sums[5:]]
    if self.is_empty:
      self._products = [np.zeros(leaf.shape) for leaf in products]
    # In place: wide inputs have millions of products.
    for whole, part in zip(self._products, products, strict=True):
      whole += part
    self._small.append(small)

  def moments(self) -> CrossMoments:
    """Moments of all samples, of at least one batch (Chan's rule for many)."""
    count, centre_in, centre_out, in_, out = map(
      np.stack, zip(*self._small, strict=True)
    )
    share = 1.0 / np.where(count > 0.0, count, 1.0)[:, None]
    mean_in, mean_out = centre_in + share * in_, centre_out + share * out
    total = count.sum() or 1.0
    whole_in, whole_out = count @ mean_in / total, count @ mean_out / total
    x, y, weight = mean_in - whole_in, mean_out - whole_out, count[:, None]
    in_in, in_out, out_out = self._products
    return CrossMoments(
      float(count.sum()),
      whole_in,
      whole_out,
      in_in + (weight * x).T @ x - (share * in_).T @ in_,
      in_out + (weight * x).T @ y - (share * in_).T @ out,
      out_out + (weight * y**2 - share * out**2).sum(axis=0),
    )


def require_finite(where: str, *arrays: np.ndarray) -> None:
  """Refuses a fit on sums of activations that are NaN or infinite.

  Raises:
    ModelError: names `where`, such as `block 3`, if it is not empty.
  """
  if not all(np.isfinite(array).all() for array in arrays):
    raise not_finite(where)


def merged(moments: Iterable[CrossMoments]) -> CrossMoments:
  """Moments of all samples together, of at least one item."""
  return functools.reduce(CrossMoments.merge, moments)


def check_ridge(ridge: Any) -> float | None:
  """Returns a ridge as a number, or None for `auto`; else a `UsageError`."""
  if ridge is None or ridge == 'auto':
    return None
  try:
    number = float(ridge)
  except (TypeError, ValueError):
    number = -1.0
  if not 0.0 <= number < np.inf:
    raise UsageError(
      f'ridge={ridge!r}: give a number of at least 0 (a share of the mean '
      'variance of the inputs), or auto'
    )
  return number


def check_rank(rank: int | None) -> int | None:
  """Returns the rank; `UsageError` for one below 1. None is no limit."""
  if rank is not None and rank < 1:
    raise UsageError(f'rank={rank}: give at least 1, or none for no limit')
  return rank


def rounding_floor(count: float, means: np.ndarray) -> float:
  """The least eigenvalue of sums of squared deviations that is signal.

  An input that never changes, such as the class token in the first block, still
  has the variance of its rounding.

  Args:
    count: samples.
    means: of the channels.
  """
  return _ROUNDING**2 * count * float((means**2).mean())


class RidgeSolver:
  """Ridge solutions of one set of moments, by its eigenvectors."""

  def __init__(self, moments: CrossMoments):
    self._moments = moments
    values, self._vectors = np.linalg.eigh(moments.in_in)
    # The trace over the width, so that a ridge has no unit.
    self._mean = max(values.sum(), 0.0) / len(values)
    self._values = np.maximum(values, 0.0)
    self._outputs = self._vectors.T @ moments.in_out
    self._floor = rounding_floor(moments.count, moments.mean_in)

  def solve(self, ridge: float) -> AffineMap:
    """`(X'X + ridge·mean·I)^-1 X'Y`; the pseudo-inverse for ridge 0."""
    kernel = self._vectors @ (self._inverse(ridge)[:, None] * self._outputs)
    moments = self._moments
    return AffineMap(kernel, moments.mean_out - moments.mean_in @ kernel)

  def errors(self, others: CrossMoments, ridges: Sequence[float]) -> np.ndarray:
    """`others.squared_error(solve(ridge))` of each ridge.

    With the kernel V·diag(d)·C and the others' products in the basis V, that is
    a quadratic form of d: no map is computed, and the basis changes once.
    """
    vectors, outputs = self._vectors, self._outputs
    products = ((vectors.T @ others.in_out) * outputs).sum(axis=1)
    rotated = vectors.T @ others.in_in @ vectors
    quadratic = rotated * (outputs @ outputs.T)
    step_in = vectors.T @ (others.mean_in - self._moments.mean_in)
    step_out = others.mean_out - self._moments.mean_out
    found = []
    for d in map(self._inverse, ridges):
      left = step_out - (step_in * d) @ outputs
      found.append(
        others.out_out.sum()
        - 2.0 * (products @ d)
        + d @ quadratic @ d
        + others.count * (left**2).sum()
      )
    return np.asarray(found)

  def _inverse(self, ridge: float) -> np.ndarray:
    """The factor of each eigenvector's part of X'Y."""
    added = ridge * self._mean
    total = self._values + added
    floor = self._floor
    if ridge == 0:
      floor = max(floor, _CUTOFF * self._values.max())
    usable = total > floor
    inverse = np.zeros_like(total)
    inverse[usable] = 1.0 / total[usable]
    return inverse


def _by_factor(moments: CrossMoments, ridge: float) -> AffineMap | None:
  """`RidgeSolver.solve` at a fraction of its cost, None if it takes eigenvectors.

  Sums of float32 products can have eigenvalues below zero by rounding. Without
  these, every pivot is at least what the ridge adds. NaN has no factor either.
  """
  added = ridge * np.trace(moments.in_in) / len(moments.in_in)
  if not added > rounding_floor(moments.count, moments.mean_in):
    return None
  whole = moments.in_in.copy()
  whole.flat[:: len(whole) + 1] += added
  try:
    factor = scipy.linalg.cho_factor(
      whole, overwrite_a=True, check_finite=False
    )
  except scipy.linalg.LinAlgError:
    return None
  if not np.diag(factor[0]).min() ** 2 >= 0.999 * added:
    return None
  kernel = scipy.linalg.cho_solve(factor, moments.in_out)
  return AffineMap(kernel, moments.mean_out - moments.mean_in @ kernel)


def solve(
  moments: CrossMoments, ridge: float, rank: int | None = None
) -> AffineMap:
  """The affine map of least squares.

  Args:
    moments: of the samples.
    ridge: penalty on the squared kernel (never on the bias), as a share of
      the inputs' mean variance, so that it does not depend on the scale or
      number of the inputs or on the number of samples. With 0, the solution of
      least norm.
    rank: the largest rank of the kernel (reduced-rank regression); None for
      no limit.

  Raises:
    UsageError: a rank below 1.
  """
  check_rank(rank)
  found = _by_factor(moments, ridge) or RidgeSolver(moments).solve(ridge)
  return found if rank is None else truncate(moments, found, rank, ridge)


def truncate(
  moments: CrossMoments, affine: AffineMap, rank: int, ridge: float = 0.0
) -> AffineMap:
  """The map of a given rank that is nearest to `affine` on the samples.

  It projects the outputs of `affine`. If `affine` is the solution for `ridge`,
  the result is the solution among the maps of that rank (reduced-rank
  regression).
  """
  kernel = affine.kernel
  if rank >= min(kernel.shape):
    return affine
  added = ridge * np.trace(moments.in_in) / len(kernel)
  fitted = kernel.T @ (moments.in_in @ kernel + added * kernel)
  _, vectors = np.linalg.eigh(0.5 * (fitted + fitted.T))
  leading = vectors[:, -rank:]
  kernel = (kernel @ leading) @ leading.T
  # The mean prediction stays.
  bias = affine.bias + moments.mean_in @ (affine.kernel - kernel)
  return AffineMap(kernel, bias)


def residual_share(*maps: tuple[CrossMoments, AffineMap]) -> float:
  """Share of the outputs' variance that maps of disjoint samples leave.

  0 is exact; 1 is as good as the constant mean, and maps fitted on the same
  samples never exceed it. Returns 0 where the outputs do not vary.
  """
  whole = merged(moments for moments, _ in maps)
  total = float(whole.out_out.sum())
  if not total > 0.0:
    return 0.0
  error = sum(moments.squared_error(affine) for moments, affine in maps)
  return max(error / total, 0.0)
