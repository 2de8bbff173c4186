"""Each channel leaves a corrected norm with the dense model's moments."""

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.moments import ChannelStatistics
from lambda_vit_jax.core.errors import DataError, ModelError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import norm_recentring
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images()

# Moments of some thousand float32 numbers around 1, by programs that sum in
# another order; each norm reads what the ones before have rounded.
CLOSE = {'rtol': 1e-4, 'atol': 1e-4}


def after_norms(model):
  """What leaves each norm, `[samples, embed]` float64, in numpy."""
  taps = model.apply(IMAGES)[1]

  def leave(x, norm, epsilon):
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    x = x * np.asarray(norm['scale']) + np.asarray(norm['bias'])
    return x.reshape(-1, x.shape[-1])

  found = {}
  module, params = model.module, model.params
  for index, mode in enumerate(model.attention_modes):
    name = block_name(index)
    norms, tap = params[name], taps[name]
    epsilon = module.norm_eps[index]
    if mode == 'full':
      found[f'{name}/norm1'] = leave(tap['input'], norms['norm1'], epsilon)
    seen = tap['after_attention']
    if index >= module.last_mixing_block:
      seen = seen[:, : module.read_tokens]
    found[f'{name}/norm2'] = leave(seen, norms['norm2'], epsilon)
  last = taps[block_name(model.depth - 1)]['output']
  if module.norm_before_pool:
    last = last[:, : module.read_tokens]
    found['norm'] = leave(last, params['norm'], module.norm_eps[-1])
  else:
    pooled = last[:, module.num_prefix_tokens :].mean(axis=1)
    found['norm'] = leave(pooled, params['fc_norm'], module.norm_eps[-1])
  return found


def modified(dense, how):
  if how == 'linear':
    return lv.linearize(dense, [IMAGES], (1,), inputs=('token', 'mean'))
  return lv.prune(dense, (1,), how)


@pytest.mark.parametrize('how', ['linear', 'absent', 'identity'])
@pytest.mark.parametrize('pooling', ['token', 'avg'])
def test_every_later_norm_has_the_dense_moments(tiny_variant, how, pooling):
  options = {'pooling': pooling, 'norm_before_pool': pooling == 'token'}
  dense = make_model(tiny_variant, **options)
  model = modified(dense, how)
  found = after_norms(lv.recentre(model, dense, batches_of(IMAGES)))
  wanted, before = after_norms(dense), after_norms(model)
  later = [name for name in found if not name.startswith('block00')]
  assert len(later) == 4
  for name in later:
    np.testing.assert_allclose(
      found[name].mean(0), wanted[name].mean(0), **CLOSE
    )
    np.testing.assert_allclose(found[name].std(0), wanted[name].std(0), **CLOSE)
  # Before the correction, they differ.
  assert any(
    abs(before[name].std(0) - wanted[name].std(0)).max() > 0.01
    for name in later
  )


def test_parameters_before_the_first_change_are_kept(tiny_variant):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (1,), 'absent')
  found = lv.recentre(model, dense, [IMAGES])
  for name in ('block00', 'head', 'pos_embed'):
    jax.tree.map(
      np.testing.assert_array_equal, found.params[name], model.params[name]
    )
  for leaf in ('qkv', 'proj'):
    jax.tree.map(
      np.testing.assert_array_equal,
      found.params['block02']['attn'][leaf],
      model.params['block02']['attn'][leaf],
    )


def test_an_unchanged_model_is_returned(tiny_variant):
  dense = make_model(tiny_variant)
  assert lv.recentre(dense, dense, [IMAGES]) is dense


@pytest.mark.parametrize('devices', [2, 8])
def test_same_on_any_number_of_devices(tiny_variant, devices):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (0,), 'absent')
  one = lv.recentre(model, dense, [IMAGES], mesh=mesh_of(1))
  many = lv.recentre(
    model, dense, batches_of(IMAGES, 20), mesh=mesh_of(devices)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    one.params,
    many.params,
  )


def test_as_an_option_of_the_fit(tiny_variant):
  dense = make_model(tiny_variant)
  fitted = lv.linearize(dense, [IMAGES], (1,))
  both = lv.linearize(dense, [IMAGES], (1,), recentre=True)
  after = lv.recentre(fitted, dense, [IMAGES])
  jax.tree.map(np.testing.assert_array_equal, both.params, after.params)


def test_twice_is_once(tiny_variant):
  dense = make_model(tiny_variant)
  once = lv.recentre(lv.prune(dense, (1,), 'absent'), dense, [IMAGES])
  twice = lv.recentre(once, dense, [IMAGES])
  # Again through the moments of some thousand float32 numbers.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **CLOSE),
    once.params,
    twice.params,
  )


def test_only_tokens_that_are_computed_count(tiny_variant):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (1, 2), 'absent')
  assert model.module.last_mixing_block == 0
  found = after_norms(lv.recentre(model, dense, [IMAGES]))
  norm = dense.params['block01']['norm2']
  tap = dense.apply(IMAGES)[1]['block01']['after_attention'][:, 0]
  centred = tap - tap.mean(-1, keepdims=True)
  wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  wanted = wanted * norm['scale'] + norm['bias']
  np.testing.assert_allclose(
    found['block01/norm2'].std(0), wanted.std(0), **CLOSE
  )


def test_a_dead_channel_keeps_its_scale():
  norm = {'scale': np.float32([2, 3]), 'bias': np.float32([0, 1])}
  here = ChannelStatistics(9.0, np.float64([1, 1]), np.float64([0, 0.5]))
  there = ChannelStatistics(9.0, np.float64([0.5, 1]), np.float64([1, 1.0]))
  found = norm_recentring.corrected(norm, here, there)
  np.testing.assert_array_equal(found['scale'], [2, 6])
  np.testing.assert_array_equal(found['bias'], [-1, -2])


@pytest.mark.parametrize(
  'other, match',
  [
    ({'depth': 2}, 'differ in depth'),
    ({'num_registers': 2}, 'differ in num_registers'),
    ({'mlp_ratio': 2.0}, 'differ in mlp_ratio'),
    ({'image_size': 4}, 'differ in image_size'),
  ],
)
def test_models_that_differ_otherwise_are_refused(tiny_variant, other, match):
  dense = make_model(tiny_variant)
  with pytest.raises(ModelError, match=match):
    lv.recentre(
      lv.prune(dense, (1,)), make_model(tiny_variant, **other), [IMAGES]
    )


def test_bad_input(tiny_variant):
  dense = make_model(tiny_variant)
  model = lv.prune(dense, (1,))
  with pytest.raises(ModelError, match='no folded one'):
    lv.recentre(lv.fold(model), dense, [IMAGES])
  with pytest.raises(ModelError, match='the changed model first'):
    lv.recentre(dense, model, [IMAGES])
  with pytest.raises(ModelError, match='merges tokens'):
    lv.recentre(lv.merge_tokens(model, 2), dense, [IMAGES])
  with pytest.raises(ModelError, match='quantised'):
    lv.recentre(lv.quantize(model), dense, [IMAGES])
  with pytest.raises(DataError, match='31 images are too few'):
    lv.recentre(model, dense, [IMAGES[:31]])
  broken = jax.tree.map(np.array, model.params)
  broken['block00']['mlp']['fc1']['bias'][:] = np.nan
  with pytest.raises(ModelError, match='block 1: activations are NaN'):
    lv.recentre(model.replace(params=broken), dense, [IMAGES])
