"""Neurons that stay make up for those that go: `lv.narrow`."""

import dataclasses

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import least_squares, neurons
from lambda_vit_jax.training_free.least_squares import CrossMoments
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images()
# Far below what the samples determine, and above the rounding of their sums.
SMALL = 1e-6


def moments_of(hidden, outputs):
  """Exact moments of samples, in float64."""
  x, y = hidden - hidden.mean(0), outputs - outputs.mean(0)
  return CrossMoments(
    float(len(x)),
    hidden.mean(0),
    outputs.mean(0),
    x.T @ x,
    x.T @ y,
    (y * y).sum(0),
  )


def correlated(rng, samples=400, count=12, rank=9):
  mixed = rng.normal(size=(samples, rank)) @ rng.normal(size=(rank, count))
  return (
    mixed + 0.3 * rng.normal(size=(samples, count)) + rng.normal(size=count)
  )


def error_left(hidden, kernel, kept):
  """Mean squared error of `hidden·kernel` from the best affine map of `kept`."""
  x = hidden - hidden.mean(0)
  wanted = x @ kernel
  found, *_ = np.linalg.lstsq(x[:, kept], wanted, rcond=None)
  return np.square(wanted - x[:, kept] @ found).sum() / len(x)


def test_every_step_of_the_elimination_takes_the_cheapest(rng):
  hidden, kernel = correlated(rng), rng.normal(size=(12, 5))
  found = neurons.removal_order(
    moments_of(hidden, hidden @ kernel), kernel, ridge=1e-12
  )
  left = list(range(12))
  for step, gone in enumerate(found.order):
    costs = [
      error_left(hidden, kernel, [i for i in left if i != j]) for j in left
    ]
    assert gone == left[int(np.argmin(costs))]
    # Least squares by other formulas, in float64.
    np.testing.assert_allclose(found.losses[step + 1], min(costs), rtol=1e-6)
    left.remove(gone)
  total = np.square((hidden - hidden.mean(0)) @ kernel).sum() / len(hidden)
  np.testing.assert_allclose(found.losses[-1], total, rtol=1e-6)
  assert found.losses[0] == 0.0
  assert len(found.losses) == 13
  assert list(found.kept(3)) == sorted(found.order[9:])


def test_of_neurons_that_replace_each_other_one_stays(rng):
  # As wide that several go between two updates of the covariance.
  half = correlated(rng, samples=800, count=160, rank=160)
  hidden = np.concatenate([half, half], axis=1)
  kernel = rng.normal(size=(320, 4))
  found = neurons.removal_order(
    moments_of(hidden, hidden @ kernel), kernel, ridge=1e-9
  )
  assert sorted(found.kept(160) % 160) == list(range(160))
  assert found.losses[160] < 1e-2 * found.losses[-1]


def test_an_elimination_that_stops_early_begins_alike(rng):
  hidden, kernel = correlated(rng), rng.normal(size=(12, 5))
  moments = moments_of(hidden, hidden @ kernel)
  whole = neurons.removal_order(moments, kernel)
  found = neurons.removal_order(moments, kernel, least=8)
  np.testing.assert_array_equal(found.order[:4], whole.order[:4])
  np.testing.assert_array_equal(found.kept(8), whole.kept(8))
  np.testing.assert_array_equal(found.losses, whole.losses[:5])


def test_a_neuron_that_never_changes_goes_first(rng):
  hidden, kernel = correlated(rng), rng.normal(size=(12, 5))
  hidden[:, 7] = 3.0
  kernel[7] = 100.0
  found = neurons.removal_order(
    moments_of(hidden, hidden @ kernel), kernel, ridge=1e-9
  )
  assert found.order[0] == 7
  nothing = neurons.removal_order(moments_of(0.0 * hidden, hidden), kernel)
  assert sorted(nothing.order) == list(range(12))


@pytest.mark.parametrize('gamma', [None, 0.1])
def test_the_repair_is_that_of_the_equations(rng, gamma):
  hidden = correlated(rng)
  kept, gone = np.asarray([0, 3, 4, 8]), np.asarray([1, 2, 5, 6, 7, 9, 10, 11])
  params = {
    'mlp': {
      'fc1': {'kernel': rng.normal(size=(5, 12)), 'bias': rng.normal(size=12)},
      'fc2': {'kernel': rng.normal(size=(12, 5)), 'bias': rng.normal(size=5)},
    }
  }
  if gamma:
    params['ls2'] = {'gamma': np.full(5, gamma)}
  moments = moments_of(hidden, np.zeros((400, 5)))
  found = neurons.repaired(params, moments, kept, 0.01)['mlp']
  covariance = moments.in_in / 400
  inner = covariance[np.ix_(kept, kept)]
  ridge = 0.01 * np.trace(inner) / 4
  share = np.linalg.solve(
    inner + ridge * np.eye(4), covariance[np.ix_(kept, gone)]
  )
  old, mean = params['mlp']['fc2'], hidden.mean(0)
  lost = old['kernel'][gone]
  kernel = old['kernel'][kept] + share @ lost
  bias = old['bias'] + (mean[gone] - mean[kept] @ share) @ lost
  # Stored in float32.
  np.testing.assert_allclose(
    found['fc2']['kernel'], kernel, rtol=1e-4, atol=1e-4
  )
  np.testing.assert_allclose(found['fc2']['bias'], bias, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(
    found['fc1']['kernel'], params['mlp']['fc1']['kernel'][:, kept]
  )


def redundant(tiny_variant, fields):
  """Half of the neurons of each MLP repeat the other half or are constant."""
  dense = make_model(dataclasses.replace(tiny_variant, **fields))
  params = jax.tree.map(np.array, dense.params)
  for index in range(dense.depth):
    mlp = params[block_name(index)]['mlp']
    for name in mlp.keys() - {'fc2'}:
      # Gate and value of a packed layer are repeated each.
      for part in range(mlp[name]['bias'].size // 96):
        start = 96 * part
        for leaf in mlp[name].values():
          leaf[..., start + 48 : start + 90] = leaf[..., start : start + 42]
          leaf[..., start + 90 : start + 96] = 0.0
        mlp[name]['bias'][start + 90 : start + 96] = 0.7
  return dense.replace(params=params)


SLOW = {'marks': pytest.mark.slow}


@pytest.mark.parametrize(
  'fields, target',
  [
    ({}, 'stream'),
    pytest.param({'layer_scale': 0.1}, 'stream', **SLOW),
    pytest.param({'mlp_kind': 'swiglu'}, 'mlp', **SLOW),
    pytest.param({'mlp_kind': 'swiglu_packed'}, 'stream', **SLOW),
  ],
  ids=str,
)
def test_neurons_that_are_affine_in_others_cost_nothing(
  tiny_variant, fields, target
):
  dense = redundant(tiny_variant, fields)
  found = lv.narrow(dense, [IMAGES], 0.5, target=target, ridge=SMALL)
  assert found.mlp_dims == (48, 48, 48)
  # Sums of products in float32, and a ridge above zero.
  np.testing.assert_allclose(found(IMAGES), dense(IMAGES), atol=0.02)
  plain = lv.narrow_mlps(dense, dict.fromkeys(range(3), range(48, 96)))
  assert abs(np.asarray(plain(IMAGES) - dense(IMAGES))).max() > 0.5


def gap(model, dense, index):
  """Mean squared distance of the streams after a block."""
  here, there = (
    np.asarray(m.apply(IMAGES)[1][block_name(index)]['output'], np.float64)
    for m in (model, dense)
  )
  return np.square(there - here).mean()


@pytest.mark.slow
def test_a_block_makes_up_for_what_earlier_ones_lost(tiny_variant):
  dense = make_model(tiny_variant)
  first = lv.narrow(dense, [IMAGES], [40, 96, 96], ridge=SMALL)
  assert gap(first, dense, 0) < gap(
    lv.narrow_mlps(dense, {0: range(40)}), dense, 0
  )
  own = lv.narrow(first, [IMAGES], [40, 80, 96], target='mlp', ridge=SMALL)
  both = lv.narrow(first, [IMAGES], [40, 80, 96], dense=dense, ridge=SMALL)
  # The same neurons on the same stream: least squares can only gain.
  np.testing.assert_array_equal(
    own.params['block01']['mlp']['fc1']['kernel'],
    both.params['block01']['mlp']['fc1']['kernel'],
  )
  assert gap(both, dense, 1) < 0.95 * gap(own, dense, 1)
  # In two calls or in one.
  once = lv.narrow(dense, [IMAGES], [40, 80, 96], ridge=SMALL)
  jax.tree.map(np.testing.assert_array_equal, once.params, both.params)
  assert once.module == both.module


@pytest.mark.slow
def test_the_residual_is_what_remains_of_the_gap(tiny_variant):
  from lambda_vit_jax.analysis.images import read_images

  dense = make_model(tiny_variant)
  images = read_images([IMAGES], dense)
  found, fits = neurons.narrow_on(
    dense, None, images, {1: 30}, neurons.NarrowOptions()
  )
  (fit,) = fits
  assert (fit.block_index, fit.width) == (1, 30)
  taps = found.apply(IMAGES)[1]['block01']
  wanted = np.asarray(dense.apply(IMAGES)[1]['block01']['output'], np.float64)
  block = pieces.block_of(found.module, 1, 'absent')
  hidden = np.asarray(
    pieces.hidden_layer(block, found.params['block01'], taps['after_attention'])
  ).reshape(-1, 30)
  new = found.params['block01']['mlp']['fc2']['kernel']
  assert new.shape == (30, 24)
  left = (wanted - np.asarray(taps['output'])).reshape(-1, 24)
  # The correction is what the output weights differ by from the old ones.
  first = np.asarray(found.params['block01']['mlp']['fc1']['bias'])
  old_first = np.asarray(dense.params['block01']['mlp']['fc1']['bias'])
  kept = [int(np.flatnonzero(old_first == b)[0]) for b in first]
  old = dense.params['block01']['mlp']['fc2']['kernel'][kept]
  before = left + hidden @ (np.asarray(new) - np.asarray(old))
  share = np.square(left - left.mean(0)).sum()
  share /= np.square(before - before.mean(0)).sum()
  np.testing.assert_allclose(fit.residual, share, rtol=1e-2)


def test_a_share_is_of_the_blocks_that_are_named(tiny_variant):
  dense = make_model(tiny_variant)
  found = lv.narrow(dense, [IMAGES], 0.5, blocks=(2, 0), ridge=0.1)
  assert found.mlp_dims == (48, 96, 48)
  assert found.params['block01'] is dense.params['block01']
  assert lv.narrow(dense, [IMAGES], 1.0) is dense
  none = lv.narrow(dense, [IMAGES], 0.0, blocks=(1,))
  assert none.mlp_dims == (96, 0, 96)
  assert 'mlp' not in none.params['block01']
  # A share that rounds to nothing is not 0.
  least = lv.narrow(none, [IMAGES], 1e-3)
  assert least.mlp_dims == (1, 0, 1)


@pytest.mark.slow
def test_other_corrections_follow(tiny_variant):
  dense = make_model(tiny_variant)
  narrow = lv.narrow(dense, [IMAGES], [96, 0, 96])
  # Block 2 makes up for the MLP that is gone before it.
  fitted = lv.refit(narrow, dense, [IMAGES], ridge=SMALL)
  assert fitted.params['block00'] is narrow.params['block00']
  read = narrow.module.read_tokens
  here, there, before = (
    np.asarray(m.apply(IMAGES)[1]['block02']['output'])[:, :read]
    for m in (fitted, dense, narrow)
  )
  assert np.square(here - there).mean() < np.square(before - there).mean()
  recentred = lv.recentre(narrow, dense, [IMAGES])
  assert 'norm2' not in recentred.params['block01']
  with pytest.raises(ModelError, match='block 1 has an MLP of width 96'):
    lv.refit(dense, narrow, [IMAGES])


@pytest.mark.slow
@pytest.mark.parametrize('devices', [2, 8])
def test_same_on_any_number_of_devices(tiny_variant, devices):
  dense = make_model(tiny_variant)
  one = lv.narrow(dense, [IMAGES], 0.5, ridge=0.01, mesh=mesh_of(1))
  many = lv.narrow(
    dense, batches_of(IMAGES, 20), 0.5, ridge=0.01, mesh=mesh_of(devices)
  )
  # Other batches and sums, through solves.
  np.testing.assert_allclose(one(IMAGES), many(IMAGES), atol=2e-3)


def test_the_ridge_is_chosen_on_held_out_images(tiny_variant):
  found = lv.narrow(make_model(tiny_variant), [IMAGES], 0.5, blocks=(1,))
  assert np.isfinite(np.asarray(found(IMAGES))).all()
  assert found.mlp_dims == (96, 48, 96)


@pytest.mark.parametrize(
  'widths, options, error, message',
  [
    (1.5, {}, ModelError, 'a share is from 0 to 1'),
    ([1, 2], {}, ModelError, '2 widths for 3 blocks'),
    ([1, 2, 3], {'blocks': (1,)}, ModelError, '3 widths for 3 blocks'),
    (
      [96, 97, 96],
      {},
      ModelError,
      'width 97 of block 1: give a whole number from 0 to 96',
    ),
    ([96, 9.5, 96], {}, ModelError, 'width 9.5 of block 1'),
    # Its keys would be taken for widths.
    ({0: 10, 1: 20, 2: 30}, {}, ModelError, 'a dict of another form'),
    (np.array(0.5), {}, ModelError, 'a ndarray of another form'),
    # In no order.
    ({40, 48, 96}, {}, ModelError, 'a set of another form'),
    ((w for w in (1, 2)), {}, ModelError, '2 widths for 3 blocks'),
    ([True] * 3, {}, ModelError, 'width True of block 0'),
    ([[1], [1, 2], [3]], {}, ModelError, r'width \[1\] of block 0'),
    (0.5, {'blocks': (3,)}, ModelError, 'layer 3 is out of range'),
    (0.5, {'target': 'x'}, UsageError, "target='x' is not known"),
    (0.5, {'ridge': -1}, UsageError, 'ridge=-1'),
  ],
)
def test_bad_arguments(tiny_variant, widths, options, error, message):
  with pytest.raises(error, match=message):
    lv.narrow(make_model(tiny_variant), [IMAGES], widths, **options)


def test_bad_input(tiny_variant):
  dense = make_model(tiny_variant)
  with pytest.raises(DataError, match='31 images are too few to fit MLPs'):
    lv.narrow(dense, [IMAGES[:31]], 0.5)
  normed = dataclasses.replace(tiny_variant, mlp_kind='swiglu', mlp_norm=True)
  with pytest.raises(ModelError, match='is normalised'):
    lv.narrow(make_model(normed), [IMAGES], 0.5)
  broken = jax.tree.map(np.array, dense.params)
  broken['block00']['mlp']['fc1']['bias'][:] = np.nan
  with pytest.raises(ModelError, match='NaN or infinite'):
    lv.narrow(dense.replace(params=broken), [IMAGES], 0.5)
  with pytest.raises(ModelError, match='doubles the stream'):
    lv.narrow(lv.prune(dense, (0,)), [IMAGES], 0.5, dense=dense)


def test_the_least_squares_of_a_fold_is_that_of_its_samples(rng):
  """`without_neurons` gives the moments of what the stream then lacks."""
  hidden, kernel = correlated(rng), rng.normal(size=(12, 5))
  gap_before = rng.normal(size=(400, 5))
  kept = np.asarray([1, 5, 6])
  gone = [i for i in range(12) if i not in kept]
  found = neurons.without_neurons(moments_of(hidden, gap_before), kernel, kept)
  lacking = gap_before + hidden[:, gone] @ kernel[gone]
  exact = moments_of(hidden[:, kept], lacking)
  for name in ('mean_in', 'mean_out', 'in_in', 'in_out', 'out_out'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(exact, name), rtol=1e-8, atol=1e-8
    )
  assert least_squares.solve(found, 0.1).kernel.shape == (3, 5)
