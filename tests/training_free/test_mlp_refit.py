"""Refitted MLPs bring the stream closer to the dense model's."""

import dataclasses

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import (
  cross_validation,
  least_squares,
  mlp_refit,
  paired,
)
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images()


def modified(dense, how, layers=(1,)):
  if how == 'linear':
    return lv.linearize(dense, [IMAGES], layers, inputs=('token', 'mean'))
  return lv.prune(dense, layers, 'absent')


def gap(model, dense, index, stop=None):
  """The dense stream minus the model's after a block."""
  here, there = (
    m.apply(IMAGES)[1][block_name(index)]['output'] for m in (model, dense)
  )
  return np.asarray(there - here, np.float64)[:, :stop]


@pytest.mark.parametrize('how', ['linear', 'absent'])
@pytest.mark.parametrize('options', [{}, {'layer_scale': 0.1}])
def test_no_block_is_further_from_the_dense_network(tiny_variant, how, options):
  variant = dataclasses.replace(tiny_variant, **options)
  dense = make_model(variant)
  model = modified(dense, how)
  found = lv.refit(model, dense, batches_of(IMAGES))
  before, after = (gap(m, dense, 1) for m in (model, found))
  # Both read the same stream there, so that least squares can only gain: a
  # map has left hardly anything that is a function of the token alone.
  share = (after**2).sum() / (before**2).sum()
  assert share < (0.9 if how == 'absent' else 1.0)
  read = model.module.read_tokens
  before, after = (gap(m, dense, 2, read) for m in (model, found))
  assert (after**2).sum() < (before**2).sum()


@pytest.mark.parametrize('index', [1, 2])
@pytest.mark.parametrize('ridge', [None, 0.3])
def test_the_correction_is_that_of_ridge_regression(tiny_variant, index, ridge):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (1,), 'absent')
  images = read_images([IMAGES], dense)
  found, fits = mlp_refit.refit_on(model, dense, images, ridge=ridge)
  fit = fits[index - 1]
  assert ridge in (None, fit.ridge)
  assert fit.block_index == index
  # By numpy, of the network as corrected before this block.
  params = dict(found.params)
  params[block_name(index)] = model.params[block_name(index)]
  partly = found.replace(params=params)
  taps = partly.apply(IMAGES)[1][block_name(index)]
  block = pieces.block_of(model.module, index, 'absent')
  x = np.asarray(taps['after_attention'])
  hidden = pieces.hidden_layer(block, params[block_name(index)], x)
  read = model.module.read_tokens if index == 2 else None
  hidden = np.asarray(hidden, np.float64)[:, :read]
  there = np.asarray(dense.apply(IMAGES)[1][block_name(index)]['output'])
  wanted = (there - np.asarray(taps['output'])).astype(np.float64)[:, :read]
  hidden, wanted = (v.reshape(-1, v.shape[-1]) for v in (hidden, wanted))
  deviation = hidden - hidden.mean(0)
  gram = deviation.T @ deviation
  gram += fit.ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
  kernel = np.linalg.solve(gram, deviation.T @ (wanted - wanted.mean(0)))
  bias = wanted.mean(0) - hidden.mean(0) @ kernel
  old = model.params[block_name(index)]['mlp']['fc2']
  new = found.params[block_name(index)]['mlp']['fc2']
  # Sums of some thousand float32 products, through a solve.
  near = {'rtol': 1e-3, 'atol': 1e-3 * abs(kernel).max()}
  np.testing.assert_allclose(new['kernel'] - old['kernel'], kernel, **near)
  np.testing.assert_allclose(new['bias'] - old['bias'], bias, atol=1e-3)
  left = wanted - hidden @ kernel - bias
  share = (left**2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
  np.testing.assert_allclose(fit.residual, share, atol=1e-3)


def test_a_constant_attention_output_is_restored(tiny_variant):
  # Added to all channels alike: no norm sees it, and the gap is constant.
  dense = make_model(tiny_variant)
  params = jax.tree.map(np.array, dense.params)
  projection = params['block01']['attn']['proj']
  projection['kernel'][:] = 0.0
  projection['bias'][:] = 0.7
  dense = dense.replace(params=params)
  model = lv.prune(dense, (1,), 'absent')
  found = lv.refit(model, dense, [IMAGES])
  # Float32 rounding of a stream around 3.
  assert abs(gap(found, dense, 2)).max() < 1e-4
  np.testing.assert_allclose(found(IMAGES), dense(IMAGES), atol=1e-4)
  assert abs(gap(model, dense, 2)).max() > 0.5


def test_the_hidden_layer_is_what_the_mlp_reads(tiny_variant):
  model = make_model(tiny_variant)
  taps = model.apply(IMAGES)[1]['block01']
  params = model.params['block01']
  block = pieces.block_of(model.module, 1, 'absent')
  hidden = pieces.hidden_layer(block, params, taps['after_attention'])
  second = params['mlp']['fc2']
  np.testing.assert_allclose(
    hidden @ second['kernel'] + second['bias'], taps['mlp'], atol=1e-5
  )


def test_only_the_second_layers_of_mlps_change(tiny_variant):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (1,), 'absent')
  found = lv.refit(model, dense, [IMAGES])
  changed = [
    jax.tree_util.keystr(path)
    for (path, old), new in zip(
      jax.tree_util.tree_leaves_with_path(model.params),
      jax.tree.leaves(found.params),
      strict=True,
    )
    if not np.array_equal(old, new)
  ]
  assert changed == [
    f"['block0{index}']['mlp']['fc2']['{leaf}']"
    for index in (1, 2)
    for leaf in ('bias', 'kernel')
  ]
  assert found.macs() == model.macs()
  assert lv.refit(dense, dense, [IMAGES]) is dense


@pytest.mark.parametrize('devices', [2, 8])
def test_same_on_any_number_of_devices(tiny_variant, devices):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (0,), 'absent')
  one = lv.refit(model, dense, [IMAGES], mesh=mesh_of(1))
  many = lv.refit(model, dense, batches_of(IMAGES, 20), mesh=mesh_of(devices))
  # Other batches and sums, through solves.
  np.testing.assert_allclose(one(IMAGES), many(IMAGES), atol=1e-3)


def test_a_closed_layer_scale_is_left_closed(tiny_variant):
  dense = make_model(dataclasses.replace(tiny_variant, layer_scale=0.1))
  params = jax.tree.map(np.array, dense.params)
  params['block01']['ls2']['gamma'][3:5] = 0.0, 1e-40
  dense = dense.replace(params=params)
  found = lv.refit(lv.prune(dense, (1,), 'absent'), dense, [IMAGES])
  old, new = (m.params['block01']['mlp']['fc2'] for m in (dense, found))
  np.testing.assert_array_equal(old['kernel'][:, 3:5], new['kernel'][:, 3:5])
  assert np.isfinite(new['kernel']).all()


def test_the_correction_passes_layer_scale(rng):
  # γ·(h·(W + ΔW/γ) + b + Δb/γ) is the block's own output plus h·ΔW + Δb.
  gamma = np.float32([0.1, 2.0, -0.5])
  kernel, delta = rng.normal(size=(2, 4, 3)).astype(np.float32)
  bias, shift = rng.normal(size=(2, 3)).astype(np.float32)
  params = {
    'ls2': {'gamma': gamma},
    'mlp': {'fc2': {'kernel': kernel, 'bias': bias}},
  }
  correction = least_squares.AffineMap(delta, shift)
  new = mlp_refit.corrected(params, correction)['mlp']['fc2']
  hidden = rng.normal(size=(5, 4)).astype(np.float32)
  before = gamma * (hidden @ kernel + bias)
  after = gamma * (hidden @ new['kernel'] + new['bias'])
  # Float32 rounding of sums of four products.
  expected = before + hidden @ delta + shift
  np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


def test_as_an_option_of_the_fit(tiny_variant):
  dense = make_model(tiny_variant)
  fitted = lv.linearize(dense, [IMAGES], (1,))
  both = lv.linearize(dense, [IMAGES], (1,), refit=True)
  after = lv.refit(fitted, dense, [IMAGES])
  jax.tree.map(np.testing.assert_array_equal, both.params, after.params)


def test_folds_take_turns_in_small_batches():
  sums = tuple(np.ones((2, *shape)) for shape in FOLD_SHAPES)
  moments = cross_validation.FoldMoments()
  for position in range(3):
    moments.add(position, sums)
  assert [fold.count for fold in moments.folds] == [2, 2, 1, 1]


# Of `least_squares.batch_sums` with one input and one output.
FOLD_SHAPES = ((), (1,), (1,), (1,), (1,), (1, 1), (1, 1), (1,))


def test_too_few_images_are_counted_with_those_held_back(tiny_variant):
  model = make_model(tiny_variant)
  images = read_images([IMAGES[:21]], model)
  with pytest.raises(
    DataError, match=r'28 images are too few to x; .* least 42,'
  ):
    paired.check_images(images, 'x', held=7)
  with pytest.raises(
    DataError, match=r'21 images are too few to x; .* least 32,'
  ):
    paired.check_images(images, 'x')


def test_bad_input(tiny_variant):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (1,), 'absent')
  with pytest.raises(ModelError, match='doubles the stream'):
    lv.refit(lv.prune(dense, (1,)), dense, [IMAGES])
  with pytest.raises(ModelError, match='the changed model first'):
    lv.refit(dense, model, [IMAGES])
  with pytest.raises(DataError, match='31 images are too few to fit MLPs'):
    lv.refit(model, dense, [IMAGES[:31]])
  with pytest.raises(UsageError, match='ridge=-1'):
    lv.refit(model, dense, [IMAGES], ridge=-1)
  with pytest.raises(DataError, match='31 images are too few to fit MLPs'):
    lv.linearize(dense, [IMAGES[:31]], (1,), refit=True)
  broken = jax.tree.map(np.array, model.params)
  broken['block00']['mlp']['fc1']['bias'][:] = np.nan
  with pytest.raises(ModelError, match='NaN or infinite'):
    lv.refit(model.replace(params=broken), dense, [IMAGES])
