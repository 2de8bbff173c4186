"""Inputs of a map beyond the token: what they are, and where they do not fit."""

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models.adapt import with_image_size
from lambda_vit_jax.models.edits import dequantize
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.linear_attention import mix_heads, neighbour_mean
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import token_mixing
from lambda_vit_jax.training_free.linear_maps import (
  LinearizeOptions,
  fit_linear,
)
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images()
ALL = ('token', 'mean', 'class_map', 'neighbours', 'positions', 'mixing')

# float32 sums of a few products, in another order.
SAME_SUMS = {'rtol': 1e-5, 'atol': 1e-5}


@pytest.fixture(scope='module')
def mapped(tiny_variant):
  model = make_model(tiny_variant)
  return lv.linearize(model, batches_of(IMAGES), (0, 2), inputs=ALL)


def test_every_file_computes_maps_of_every_input(mapped, tmp_path):
  report = lv.export(
    mapped.replace(variant='vit_nano_patch2_8'),
    tmp_path / 'out',
    formats=('orbax', 'safetensors', 'stablehlo'),
  )
  # The same float32 sums in another order.
  assert {'orbax', 'safetensors', 'stablehlo'} <= set(report['differences'])
  assert max(report['differences'].values()) <= 1e-5
  program = jax.export.deserialize(
    bytearray((tmp_path / 'out' / 'model.stablehlo').read_bytes())
  )
  np.testing.assert_allclose(program.call(IMAGES), mapped(IMAGES), atol=1e-5)


@pytest.mark.parametrize('grid', [(3, 3), (4, 5)])
def test_neighbours_are_those_inside_the_grid(rng, grid):
  rows, columns = grid
  x = rng.normal(size=(2, rows * columns, 6)).astype(np.float32)
  patches = x.reshape(2, rows, columns, 6)
  expected = np.empty_like(patches)
  for i in range(rows):
    for j in range(columns):
      window = patches[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      expected[:, i, j] = window.mean(axis=(1, 2))
  found = neighbour_mean(x, grid)
  np.testing.assert_allclose(found, expected.reshape(x.shape), **SAME_SUMS)


def test_each_head_is_mixed_by_its_own_matrix(rng):
  values = rng.normal(size=(2, 5, 6)).astype(np.float32)
  weights = rng.normal(size=(3, 4, 5)).astype(np.float32)
  found = mix_heads(values, weights)
  for head in range(3):
    channels = slice(2 * head, 2 * head + 2)
    expected = weights[head] @ values[..., channels]
    np.testing.assert_allclose(found[..., channels], expected, **SAME_SUMS)


def attention_by_hand(model, index, x):
  """What the heads give and their values, `[images, heads, tokens, channels]`."""
  module, params = model.module, model.params[block_name(index)]
  normal = np.asarray(normalize(x, module.norm_eps[index]), np.float64)
  normal = normal * params['norm1']['scale'] + params['norm1']['bias']
  fused = params['attn']['qkv']
  parts = np.split(normal @ fused['kernel'] + fused['bias'], 3, axis=-1)
  query, key, value = (
    p.reshape(*p.shape[:2], module.num_heads, -1).swapaxes(1, 2) for p in parts
  )
  scores = query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1])
  weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
  return weights / weights.sum(axis=-1, keepdims=True) @ value, value


def test_mixing_matrices_are_the_regression_of_heads_on_values(tiny_variant):
  """The second one: values of the modified stream, outputs of the dense one."""
  model = make_model(tiny_variant)
  options = {'inputs': ('token', 'mixing'), 'ridge': 1e-2}
  first = lv.linearize(model, [IMAGES], (0,), **options)
  both = lv.linearize(model, batches_of(IMAGES, 20), (0, 1), **options)
  streams = [m.apply(IMAGES)[1]['block01']['input'] for m in (first, model)]
  _, values = attention_by_hand(model, 1, streams[0])
  outputs, _ = attention_by_hand(model, 1, streams[1])
  for head, found in enumerate(
    both.params['block01']['attn']['mixer']['weights']
  ):
    o, v = (
      part[:, head].swapaxes(0, 1).reshape(17, -1) for part in (outputs, values)
    )
    gram = v @ v.T
    gram += token_mixing.RIDGE * np.trace(gram) / 17 * np.eye(17)
    expected = np.linalg.solve(gram, v @ o.T).T
    # Sums of float32 products, divided by eigenvalues of 1e-3 and more.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def without_queries(model):
  """Every token attends to all alike, whatever the image."""
  params = jax.tree.map(np.array, model.params)
  width = model.module.embed_dim
  for index in range(model.depth):
    fused = params[block_name(index)]['attn']['qkv']
    fused['kernel'][:, :width] = 0.0
    fused['bias'][:width] = 0.0
  return model.replace(params=params)


@pytest.mark.parametrize('target', ['stream', 'attention'])
@pytest.mark.parametrize('last', ['mean', 'mixing'])
def test_attention_that_a_map_can_express_is_replaced_exactly(
  tiny_variant, last, target
):
  """In sequence, so that an error of the first map would grow."""
  model = without_queries(make_model(tiny_variant, layer_scale=0.5))
  options = LinearizeOptions(inputs=('token', last), ridge=0.0, target=target)
  fitted = fit_linear(model, [IMAGES], (0, 1), options)
  assert max(fit.residual for fit in fitted.blocks) <= 1e-5
  # Logits of size 1, λ a thousandth, and sums of float32 products.
  np.testing.assert_allclose(fitted.model(IMAGES), model(IMAGES), atol=5e-3)
  token = fit_linear(model, [IMAGES], (0, 1), LinearizeOptions(ridge=0.0))
  assert min(fit.residual for fit in token.blocks) > 1e-3


def test_with_positions_nothing_is_left_on_average_anywhere(tiny_variant):
  model = make_model(tiny_variant)
  gaps = {}
  for inputs in (('token',), ('token', 'positions')):
    found = lv.linearize(
      model, [IMAGES], (1,), inputs=inputs, ridge=1e-7, target='attention'
    )
    taps = (m.apply(IMAGES)[1]['block01']['attention'] for m in (found, model))
    mine, dense = (np.asarray(tap, np.float64) for tap in taps)
    gaps[inputs] = abs((mine - dense).mean(axis=0)).max()
  assert gaps['token', 'positions'] < 1e-4
  assert gaps[('token',)] > 1e-2


@pytest.mark.parametrize(
  'batches, options',
  [
    (batches_of(IMAGES, 7), {}),
    ([IMAGES], {'devices': 8}),
    ([IMAGES], {'memory_gib': 4e-4}),
  ],
  ids=['ragged', 'devices', 'memory'],
)
def test_user_batches_and_devices_do_not_matter(
  mapped, tiny_variant, batches, options
):
  if 'devices' in options:
    options = {'mesh': mesh_of(options['devices'])}
  model = make_model(tiny_variant)
  found = lv.linearize(model, batches, (0, 2), inputs=ALL, **options)
  # Sums of the same products in another order; ridges are at least 1e-6.
  np.testing.assert_allclose(found(IMAGES), mapped(IMAGES), atol=1e-3)


def test_int8_rounds_every_matrix_of_a_map(mapped):
  quantized = lv.quantize(mapped)
  attn = quantized.params['block02']['attn']
  matrices = {name for name, leaves in attn.items() if 'kernel' in leaves}
  assert matrices == set(attn) - {'positions', 'mixer'}
  assert {attn[name]['kernel'].dtype.name for name in matrices} == {'int8'}
  # The same products, scaled after the sum instead of before.
  np.testing.assert_allclose(
    quantized(IMAGES), dequantize(quantized)(IMAGES), rtol=1e-4, atol=1e-4
  )
  # Integers instead of floats, and each token rounded to 1/254 of its largest.
  exact = np.asarray(mapped(IMAGES))
  error = np.asarray(lv.quantize(mapped, 'dynamic')(IMAGES)) - exact
  assert (error**2).mean() < 0.01 * exact.var()


def test_merged_tokens_are_refused(mapped):
  message = 'maps of neighbours and positions and mixing need every patch'
  with pytest.raises(ModelError, match=message):
    lv.merge_tokens(mapped, 2)
  # As a config or a damaged description would have it.
  merging = mapped.replace(module=mapped.module.clone(merge=(0, 2, 0)))
  with pytest.raises(ModelError, match=message):
    merging(IMAGES)
  assert lv.merge_tokens(mapped, 0)(IMAGES).shape == (75, 10)


def test_another_image_size_is_refused(mapped, tiny_variant):
  with pytest.raises(ModelError, match='for images of 8 x 8, not 16 x 16'):
    with_image_size(mapped, 16)
  model = make_model(tiny_variant)
  near = lv.linearize(model, [IMAGES], (0,), inputs=('token', 'neighbours'))
  larger = np.asarray(make_images(2, shape=(16, 16, 1)))
  assert with_image_size(near, 16)(larger).shape == (2, 10)
  with pytest.raises(ModelError, match='a grid of 2 x 2 patches is too small'):
    with_image_size(near, 4)


def test_grids_without_neighbours_are_refused(tiny_variant):
  model = make_model(tiny_variant, patch_size=4)
  with pytest.raises(ModelError, match='a grid of 2 x 2 patches is too small'):
    lv.linearize(model, [IMAGES], (0,), inputs=('token', 'neighbours'))
