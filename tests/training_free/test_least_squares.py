"""Affine maps from streamed moments are those of all samples at once."""

import jax
import numpy as np
import pytest

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.training_free import cross_validation
from lambda_vit_jax.training_free import least_squares as least_squares_lib

SAMPLES, INPUTS, OUTPUTS = 600, 12, 5


def samples(seed=0, noise=0.5, mean=0.0):
  rng = np.random.default_rng(seed)
  turn, _ = np.linalg.qr(rng.normal(size=(INPUTS, INPUTS)))
  mixing = turn * np.geomspace(0.3, 3.0, INPUTS)
  x = rng.normal(size=(SAMPLES, INPUTS)) @ mixing + mean
  y = x @ rng.normal(size=(INPUTS, OUTPUTS)) + rng.normal(size=OUTPUTS)
  y += noise * rng.normal(size=y.shape)
  return x.astype(np.float32), y.astype(np.float32)


_sums = jax.jit(least_squares_lib.batch_sums)


def moments(x, y, size=SAMPLES):
  """Streamed in batches of one shape, the last one padded."""
  parts = []
  for start in range(0, len(x), size):
    rows = x[start : start + size], y[start : start + size]
    missing = size - len(rows[0])
    keep = np.arange(size) < len(rows[0])
    rows = (np.pad(r, ((0, missing), (0, 0)), mode='edge') for r in rows)
    parts.append(least_squares_lib.CrossMoments.from_sums(_sums(*rows, keep)))
  return least_squares_lib.merged(parts)


def least_squares(x, y, ridge=0.0):
  """Numpy on all samples in float64: kernel and bias, ridge as in `solve`."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  centred = x - x.mean(axis=0)
  scale = np.sqrt(ridge * (centred**2).sum() / x.shape[1])
  rows = np.concatenate([centred, scale * np.eye(x.shape[1])])
  targets = np.concatenate(
    [y - y.mean(axis=0), np.zeros((x.shape[1], y.shape[1]))]
  )
  kernel = np.linalg.lstsq(rows, targets, rcond=1e-5)[0]
  return kernel, y.mean(axis=0) - x.mean(axis=0) @ kernel


def test_moments_of_many_batches_are_those_of_all_samples():
  """Of batches whose means differ by far, added up in one go."""
  x, y = samples()
  steps = np.repeat([0.0, 5.0, -3.0, 1.0], 150)[:, None]
  x, y = x + steps, y - 2 * steps
  added = least_squares_lib.Accumulator()
  for rows in zip(np.split(x, 4), np.split(y, 4), strict=True):
    added.add(_sums(*rows, np.ones(150, bool)))
  found = added.moments()
  x, y = x - x.mean(axis=0), y - y.mean(axis=0)
  # Float32 within a batch, as below.
  np.testing.assert_allclose(found.in_in, x.T @ x, rtol=1e-4, atol=1e-2)
  np.testing.assert_allclose(found.in_out, x.T @ y, rtol=1e-4, atol=1e-2)
  np.testing.assert_allclose(found.out_out, (y**2).sum(axis=0), rtol=1e-4)


# Products are rounded to float32 (6e-8) and summed in float32 within a batch;
# the variances of the inputs differ by up to 1e2.
CLOSE = {'rtol': 2e-4, 'atol': 2e-4}


@pytest.mark.parametrize('ridge', [0.0, 1e-3, 1.0])
def test_equals_least_squares_on_gathered_samples(ridge):
  x, y = samples()
  found = least_squares_lib.solve(moments(x, y, 150), ridge)
  kernel, bias = least_squares(x, y, ridge)
  np.testing.assert_allclose(found.kernel, kernel, **CLOSE)
  np.testing.assert_allclose(found.bias, bias, **CLOSE)


@pytest.mark.parametrize('size', [1, 7, 250])
def test_batch_size_does_not_matter(size):
  x, y = samples()
  whole, found = moments(x, y), moments(x, y, size)
  assert found.count == SAMPLES
  for name in ('mean_in', 'mean_out', 'in_in', 'in_out', 'out_out'):
    expected = getattr(whole, name)
    # float32 sums of 600 products, relative to the largest of them.
    np.testing.assert_allclose(
      getattr(found, name), expected, rtol=0, atol=2e-6 * np.abs(expected).max()
    )


def test_large_means_cost_no_digits():
  x, y = samples(mean=1000.0)
  found = least_squares_lib.solve(moments(x, y, 100), 0.0)
  kernel, _ = least_squares(x, y)
  # As without the mean: the inputs are what float32 holds of them.
  np.testing.assert_allclose(found.kernel, kernel, **CLOSE)


def test_recovers_an_affine_map():
  x, y = samples(noise=0.0)
  streamed = moments(x, y, 100)
  found = least_squares_lib.solve(streamed, 0.0)
  scale = np.abs(y).max()
  # The outputs themselves are rounded to float32.
  np.testing.assert_allclose(
    x @ found.kernel + found.bias, y, atol=1e-5 * scale
  )
  # A difference of sums of float32 products.
  assert least_squares_lib.residual_share((streamed, found)) < 1e-6


def test_the_error_is_that_of_the_samples():
  x, y = samples()
  kernel, bias = least_squares(*samples(seed=1))
  error = ((x.astype(np.float64) @ kernel + bias - y) ** 2).sum()
  found = moments(x, y).squared_error(least_squares_lib.AffineMap(kernel, bias))
  assert found == pytest.approx(error, rel=1e-5)


def test_what_a_map_leaves_is_explained_by_the_rest():
  """A map plus the map of what it leaves is the map itself."""
  streamed = moments(*samples())
  direct = least_squares_lib.solve(streamed, 0.0)
  start = least_squares_lib.solve(streamed, 10.0)
  rest = least_squares_lib.solve(streamed.beyond(start), 0.0)
  np.testing.assert_allclose(start.kernel + rest.kernel, direct.kernel, **CLOSE)
  np.testing.assert_allclose(start.bias + rest.bias, direct.bias, **CLOSE)


def test_inputs_that_do_not_vary_get_no_weight():
  # n(x) sums to zero over its channels: the moments are always singular.
  x, y = samples()
  x -= x.mean(axis=1, keepdims=True)
  found = least_squares_lib.solve(moments(x, y), 0.0)
  kernel, _ = least_squares(x, y)
  np.testing.assert_allclose(found.kernel, kernel, **CLOSE)
  np.testing.assert_allclose(found.kernel.sum(axis=0), 0.0, atol=1e-4)


def test_ridge_to_zero_and_to_infinity():
  streamed = moments(*samples())
  free = least_squares_lib.solve(streamed, 0.0)
  np.testing.assert_allclose(
    least_squares_lib.solve(streamed, 1e-9).kernel,
    free.kernel,
    rtol=1e-4,
    atol=1e-5,
  )
  constant = least_squares_lib.solve(streamed, 1e12)
  np.testing.assert_allclose(constant.kernel, 0.0, atol=1e-9)
  np.testing.assert_allclose(constant.bias, streamed.mean_out)
  assert least_squares_lib.residual_share(
    (streamed, constant)
  ) == pytest.approx(1.0)


def test_ridge_has_no_unit():
  x, y = samples()
  plain = least_squares_lib.solve(moments(x, y), 0.1)
  # A power of two: float32 products scale exactly.
  scaled = least_squares_lib.solve(moments(4.0 * x, y), 0.1)
  np.testing.assert_allclose(scaled.kernel, plain.kernel / 4.0, rtol=1e-9)
  doubled = least_squares_lib.solve(
    moments(np.tile(x, (2, 1)), np.tile(y, (2, 1))), 0.1
  )
  np.testing.assert_allclose(doubled.kernel, plain.kernel, rtol=1e-4, atol=1e-6)


def test_full_rank_is_no_restriction():
  streamed = moments(*samples())
  free = least_squares_lib.solve(streamed, 1e-3)
  np.testing.assert_array_equal(
    least_squares_lib.solve(streamed, 1e-3, rank=OUTPUTS).kernel, free.kernel
  )
  errors = []
  for rank in range(1, OUTPUTS + 1):
    found = least_squares_lib.solve(streamed, 1e-3, rank)
    assert np.linalg.matrix_rank(found.kernel, tol=1e-6) == rank
    errors.append(streamed.squared_error(found))
  assert errors == sorted(errors, reverse=True)


def test_reduced_rank_is_optimal():
  """No projection of the outputs does better than the one chosen."""
  streamed = moments(*samples())
  best = least_squares_lib.solve(streamed, 0.0, rank=2)
  full = least_squares_lib.solve(streamed, 0.0)
  rng = np.random.default_rng(0)
  least = streamed.squared_error(best)
  for _ in range(20):
    other, _ = np.linalg.qr(rng.normal(size=(OUTPUTS, 2)))
    kernel = full.kernel @ other @ other.T
    bias = streamed.mean_out - streamed.mean_in @ kernel
    assert (
      streamed.squared_error(least_squares_lib.AffineMap(kernel, bias)) >= least
    )


@pytest.mark.parametrize('ridge', [0.0, 0.3])
@pytest.mark.parametrize('rank', [1, 3])
def test_reduced_rank_regression_by_singular_vectors(ridge, rank):
  """Eckart and Young on the fitted rows, those of the ridge among them."""
  x, y = samples(mean=2.0)
  free, _ = least_squares(x, y, ridge)
  centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
  scale = np.sqrt(ridge * (centred**2).sum() / INPUTS)
  rows = np.concatenate([centred, scale * np.eye(INPUTS)])
  leading = np.linalg.svd(rows @ free)[2][:rank]
  kernel = free @ leading.T @ leading
  found = least_squares_lib.solve(moments(x, y), ridge, rank)
  np.testing.assert_allclose(found.kernel, kernel, **CLOSE)
  # The mean of the inputs is far from 0: the bias keeps the mean prediction.
  bias = y.mean(axis=0) - x.mean(axis=0) @ kernel
  np.testing.assert_allclose(found.bias, bias, rtol=1e-3, atol=1e-3)


def test_the_held_out_error_is_measured_on_what_was_held_out():
  x, y = samples()
  folds = [moments(x[i::3], y[i::3], 200) for i in range(3)]
  expected = 0.0
  for i in range(3):
    rest = np.arange(SAMPLES) % 3 != i
    kernel, bias = least_squares(x[rest], y[rest], 0.1)
    expected += ((x[i::3] @ kernel + bias - y[i::3]) ** 2).sum()
  found = cross_validation.held_out_errors(folds, (0.1,))
  np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('dead', [False, True])
def test_errors_of_all_ridges_at_once(dead):
  x, y = samples()
  # One input depends on another, and one may not change at all.
  x[:, 1] = x[:, 0]
  x[:, 2] = 3.0 if dead else x[:, 2]
  folds = [moments(x[i::2], y[i::2], 200) for i in range(2)]
  found = cross_validation.held_out_errors(folds)
  expected = [
    folds[0].squared_error(least_squares_lib.solve(folds[1], ridge))
    + folds[1].squared_error(least_squares_lib.solve(folds[0], ridge))
    for ridge in cross_validation.RIDGES
  ]
  # Sums in float64, in another order; the smallest ridge divides by 1e-6.
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_few_noisy_samples_want_a_large_ridge():
  def ridge(count, noise):
    x, y = samples(noise=noise)
    part = slice(None, count)
    return cross_validation.choose_ridge(
      [moments(x[part][i::4], y[part][i::4]) for i in range(4)]
    )

  assert ridge(16, 50.0) > ridge(SAMPLES, 0.01)
  assert (
    cross_validation.choose_ridge([moments(*samples())])
    == cross_validation.RIDGES[0]
  )


def test_the_quick_ridge_is_the_best_of_a_few_on_the_last_fold():
  x, y = samples(noise=20.0)
  folds = [moments(x[i:48:4], y[i:48:4]) for i in range(4)]
  found = cross_validation.quick_ridge(folds)
  errors = {}
  for ridge in cross_validation.QUICK_RIDGES:
    rest = np.arange(48) % 4 != 3
    kernel, bias = least_squares(x[:48][rest], y[:48][rest], ridge)
    errors[ridge] = ((x[3:48:4] @ kernel + bias - y[3:48:4]) ** 2).sum()
  assert found == min(errors, key=errors.get)
  assert len({round(error, 3) for error in errors.values()}) == len(errors)
  assert (
    cross_validation.quick_ridge(folds[:1]) in cross_validation.QUICK_RIDGES
  )


def test_outputs_that_do_not_vary_leave_nothing():
  x, y = samples()
  streamed = moments(x, np.full_like(y, 3.0))
  found = least_squares_lib.solve(streamed, 1e-3)
  np.testing.assert_allclose(found.kernel, 0.0, atol=1e-12)
  np.testing.assert_allclose(found.bias, 3.0)
  assert least_squares_lib.residual_share((streamed, found)) == 0.0


@pytest.mark.parametrize('ridge', [0.0, 1e-6, 1.0])
def test_inputs_that_only_round_get_no_weight(ridge):
  # The class token of the first block: equal in all images but for rounding.
  rng = np.random.default_rng(0)
  x = 1.0 + 1e-7 * rng.normal(size=(SAMPLES, INPUTS))
  streamed = moments(x.astype(np.float32), samples()[1])
  found = least_squares_lib.solve(streamed, ridge)
  np.testing.assert_array_equal(found.kernel, 0.0)
  np.testing.assert_allclose(found.bias, streamed.mean_out)


def test_a_ridge_is_chosen_even_where_nothing_is_left():
  x, y = samples()
  folds = [moments(x[i::2], np.ones_like(y[i::2])) for i in range(2)]
  assert cross_validation.choose_ridge(folds) in cross_validation.RIDGES


@pytest.mark.parametrize('ridge', ['large', -1.0, float('nan'), float('inf')])
def test_impossible_ridges_are_refused(ridge):
  with pytest.raises(UsageError, match=r'ridge=.*at least 0'):
    least_squares_lib.check_ridge(ridge)


def test_settings():
  assert least_squares_lib.check_ridge('auto') is None
  assert least_squares_lib.check_ridge('1e-3') == 1e-3
  with pytest.raises(UsageError, match='rank=0'):
    least_squares_lib.solve(moments(*samples()), 0.0, rank=0)


@pytest.mark.parametrize('ridge', [1e-6, 1e-3, 1.0])
def test_factors_and_eigenvectors_give_the_same_map(monkeypatch, ridge):
  known = moments(*samples())
  found = least_squares_lib.solve(known, ridge)
  monkeypatch.setattr(least_squares_lib, '_by_factor', lambda *_: None)
  exact = least_squares_lib.solve(known, ridge)
  # float64, of a matrix with a condition number of 100.
  np.testing.assert_allclose(found.kernel, exact.kernel, rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose(found.bias, exact.bias, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('value', [-2e-6, -0.5e-6, np.nan])
def test_products_that_rounding_made_indefinite_have_no_factor(value):
  """An eigenvalue below zero, larger or smaller than what a ridge adds."""

  def of(products):
    size = len(products)
    zeros, ones = np.zeros(size), np.ones((size, 1))
    return least_squares_lib.CrossMoments(
      10.0, zeros, np.zeros(1), np.diag(products), ones, np.ones(1)
    )

  assert least_squares_lib._by_factor(of([1.0, 1.0, value]), 1e-6) is None
  # Half of the trace, 1, times 2e-6.
  kept = least_squares_lib._by_factor(of([1.0, 0.0]), 2e-6)
  np.testing.assert_allclose(kept.kernel[:, 0], [1.0, 1e6], rtol=1e-5)
