"""8-bit integer matrices: errors stay within the bounds of rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models import adapt, quantization
from lambda_vit_jax.models.build import abstract_params, forward, make_module
from lambda_vit_jax.models.edits import dequantize, fold, prune, quantize
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.training_free import linear_maps
from tests.support.small_models import with_linear
from tests.support.trees import assert_same

NANO = 'vit_nano_patch2_8'
ARITHMETIC = ('weights', 'dynamic')

_LARGE = float(np.float32(1e30))
MATRICES = arrays.arrays(
  np.float32,
  (5, 4),
  elements=st.floats(-_LARGE, _LARGE, width=32, allow_subnormal=False),
)


@pytest.fixture(scope='module')
def model():
  """Attention, an affine map and a removed layer; no bias is zero."""
  found = with_linear(create_model(NANO, seed=3, removed_layers=(1,)), 0)
  return found.replace(params=jax.tree.map(lambda x: x + 0.01, found.params))


def quantize_matrix(w):
  values, scale = quantization.quantize(jnp.asarray(w), 0)
  return np.asarray(values), np.asarray(scale)


@given(MATRICES)
def test_the_error_of_a_weight_is_at_most_half_a_step(w):
  values, scale = quantize_matrix(w)
  assert values.dtype == np.int8
  # Symmetric: -128 is not used.
  assert np.abs(values.astype(np.int64)).max() <= 127
  error = np.abs(values.astype(np.float64) * scale - w)
  # The quotient is rounded to float32 before it is rounded to an integer.
  assert (error <= 0.5 * scale.astype(np.float64) * (1 + 1e-4)).all()


@given(MATRICES, arrays.arrays(np.int8, 4, elements=st.integers(-12, 12)))
def test_scaling_a_channel_scales_its_scale(w, exponents):
  """W·diag(2^e) has the same integers, and 2^e times the scales."""
  # Away from float32's limits, where 2^e would lose bits.
  w = np.where(np.abs(w) < 1e-20, np.float32(0), w)
  factor = np.exp2(exponents.astype(np.float32))
  values, scale = quantize_matrix(w)
  scaled_values, scaled = quantize_matrix(w * factor)
  np.testing.assert_array_equal(scaled_values, values)
  zero = np.abs(w).max(axis=0) == 0
  np.testing.assert_array_equal(scaled[0], np.where(zero, 1, scale * factor)[0])


def test_zeros_stay_zero_and_non_finite_weights_stay_visible():
  w = np.float32([[0, 1e-40, np.nan, np.inf], [0, 0, 1, 1]])
  values, scale = quantize_matrix(w)
  np.testing.assert_array_equal(values[:, :2], 0)
  np.testing.assert_array_equal(scale[0, :2], 1)
  assert not np.isfinite(scale[0, 2:]).any()


@given(st.integers(0, 2**32 - 1))
def test_integer_products_are_exact(seed):
  rng = np.random.default_rng(seed)
  x = rng.integers(-127, 128, (3, 4096)).astype(np.int8)
  y = rng.integers(-127, 128, (4096, 2)).astype(np.int8)
  # The largest possible sum, which float32 cannot hold exactly.
  x[0], y[:, 0] = 127, 127
  found = quantization.integer_product(jnp.asarray(x), jnp.asarray(y))
  assert found.dtype == jnp.int32
  np.testing.assert_array_equal(found, x.astype(np.int64) @ y.astype(np.int64))


def test_products_that_overflow_32_bits_are_refused():
  most = quantization.MOST_INPUTS
  assert 127**2 * most < 2**31 <= 127**2 * (most + 1)
  x, y = jnp.ones((1, most + 1), jnp.int8), jnp.ones((most + 1, 1), jnp.int8)
  with pytest.raises(ModelError, match='inputs'):
    quantization.integer_product(x, y)


@pytest.mark.parametrize('arithmetic', ARITHMETIC)
def test_the_error_of_a_product_is_within_its_bound(arithmetic, rng):
  x = rng.normal(size=(6, 40)).astype(np.float32)
  w = rng.normal(size=(40, 7)).astype(np.float32)
  tree = quantization.quantize_tree({'kernel': w})
  matrix = quantization.Matrix(tree['kernel'], tree['kernel_scale'])
  found = quantization.product(jnp.asarray(x), matrix, arithmetic)
  exact = x.astype(np.float64) @ w.astype(np.float64)
  half = np.asarray(tree['kernel_scale'], np.float64)[None] / 2
  bound = np.abs(x).sum(axis=1, keepdims=True) * half
  if arithmetic == 'dynamic':
    step = np.abs(x).max(axis=1, keepdims=True).astype(np.float64) / 127 / 2
    bound = bound + step * (np.abs(w).sum(axis=0)[None] + len(w) * half)
  # Float32 rounding is four orders below the bound.
  assert (np.abs(np.asarray(found, np.float64) - exact) <= bound * 1.001).all()


def test_only_matrices_are_quantised(model):
  flat = convert.flatten(model.params)
  found = convert.flatten(quantize(model).params)
  matrices = {path for path in flat if path.endswith('kernel')}
  assert 'patch_embed/kernel' in matrices
  assert 'block00/attn/linear/kernel' in matrices
  for path, leaf in found.items():
    if path in matrices:
      assert leaf.dtype == jnp.int8
      scale = found[f'{path}_scale']
      assert scale.shape == leaf.shape[-1:]
      assert scale.dtype == jnp.float32
    elif not path.endswith('kernel_scale'):
      assert leaf is flat[path]
  # One byte per matrix entry, four for everything else.
  numbers = sum(flat[path].size for path in matrices)
  outputs = sum(flat[path].shape[-1] for path in matrices)
  others = sum(leaf.size for leaf in flat.values()) - numbers
  assert sum(leaf.nbytes for leaf in found.values()) == (
    numbers + 4 * (others + outputs)
  )


def test_the_tree_has_the_shapes_that_the_module_declares(model):
  quantized = quantize(model)
  declared = abstract_params(quantized.module)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), declared) == jax.tree.map(
    lambda x: (x.shape, x.dtype), quantized.params
  )


def test_quantising_again_changes_nothing(model):
  once = quantize(model)
  assert_same(quantize(once, 'dynamic').params, once.params)
  back = dequantize(once)
  assert back.module == model.module
  # The integers are the same; 127·s / 127 may be the float next to s.
  again = convert.flatten(quantize(back).params)
  for path, leaf in convert.flatten(once.params).items():
    one_bit = 2**-23 if path.endswith('kernel_scale') else 0
    np.testing.assert_allclose(again[path], leaf, rtol=one_bit, err_msg=path)


def test_weights_arithmetic_equals_the_dequantised_network(model, images):
  quantized = quantize(model)
  # The same sums, scaled before or after: float32 rounding.
  np.testing.assert_allclose(
    quantized(images), dequantize(quantized)(images), atol=1e-5
  )


def test_logits_are_within_the_bound_of_the_gradient(model, images):
  """|Δ logit| <= Σ |∂ logit / ∂ W| · s / 2, to first order."""
  gradients = jax.jacrev(
    lambda params: forward(model.module, params, images)[0]
  )(model.params)
  scales = convert.flatten(quantize(model).params)
  bound = np.zeros((len(images), model.num_classes))
  for path, gradient in convert.flatten(gradients).items():
    if path.endswith('kernel'):
      half = np.asarray(scales[f'{path}_scale']) / 2
      axes = tuple(range(2, gradient.ndim))
      bound += (np.abs(gradient) * half).sum(axis=axes)
  quantized = quantize(model)
  error = np.abs(quantized(images) - model(images))
  # The bound sums the worst case of every rounding; terms of second order are
  # far smaller.
  assert (error <= bound).all()
  assert error.max() > 0


def test_dynamic_arithmetic_is_within_its_steps(model, images):
  logits = np.asarray(model(images))
  found = quantize(model, 'dynamic')(images)
  # Each product has a relative error of about 1/127 per term, of random
  # sign; six products follow one another.
  assert np.abs(found - logits).max() < 6 / 127 * np.abs(logits).max()


@pytest.mark.parametrize('arithmetic', ARITHMETIC)
def test_one_matrix_at_a_time_is_in_memory_as_floats(model, images, arithmetic):
  """XLA's buffers are those of the float model and of one product."""

  def temporary(model):
    program = forward.lower(model.module, model.params, images)
    return program.compile().memory_analysis().temp_size_in_bytes

  module = model.module
  hidden = int(module.embed_dim * module.mlp_ratio)
  own = {
    # The largest kernel as floats.
    'weights': 4 * module.embed_dim * hidden,
    # The widest activations as int8, and sums of their size as int32.
    'dynamic': (1 + 4) * len(images) * module.num_tokens * hidden,
  }
  quantized = quantize(model, arithmetic)
  assert temporary(quantized) <= temporary(model) + own[arithmetic]


@pytest.mark.parametrize('arithmetic', ARITHMETIC)
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_non_finite_number_affects_only_its_row(bad, arithmetic):
  tree = quantization.quantize_tree({'kernel': jnp.ones((3, 2))})
  matrix = quantization.Matrix(tree['kernel'], tree['kernel_scale'])
  x = jnp.ones((2, 3)).at[0, 0].set(bad)
  found = quantization.product(x, matrix, arithmetic)
  assert not np.isfinite(found[0]).any()
  np.testing.assert_allclose(found[1], 3.0, rtol=1e-6)


def test_bfloat16_reads_the_same_integers(model, images):
  """The eight bits of an integer fit in bfloat16's significand."""
  integers = jnp.arange(-127, 128, dtype=jnp.int8)
  np.testing.assert_array_equal(
    integers.astype(jnp.bfloat16).astype(jnp.int8), integers
  )
  quantized = quantize(model)
  half = quantized.replace(module=quantized.module.clone(dtype=jnp.bfloat16))
  expected = np.asarray(quantized(images))
  # About ten products of activations rounded to 2^-9, as without integers.
  error = np.abs(np.asarray(half.apply(images)[0]) - expected).max()
  assert error < 10 * 2**-9 * max(1, np.abs(expected).max())


@pytest.mark.parametrize('arithmetic', ARITHMETIC)
def test_folding_and_quantising_commute(model, images, arithmetic):
  """Folding multiplies the scales by powers of two, which is exact."""
  folded = fold(quantize(model, arithmetic))
  other = quantize(fold(model), arithmetic)
  assert folded.module == other.module
  assert_same(folded.params, other.params)
  assert folded.params['block02']['mlp']['fc2']['kernel'].dtype == jnp.int8


def test_pruning_a_quantised_model(model):
  quantized = quantize(create_model(NANO, seed=1))
  pruned = prune(quantized, (0, 1))
  declared = abstract_params(pruned.module)
  assert jax.tree.structure(declared) == jax.tree.structure(pruned.params)


def test_another_head_is_quantised_too(model, images):
  found = adapt.with_num_classes(quantize(model), 4)
  declared = abstract_params(found.module)
  assert jax.tree.structure(declared) == jax.tree.structure(found.params)
  assert np.abs(found(images)).max() > 0


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda model, _: quantize(model, 'int4'), "int8 arithmetic 'int4'"),
    (
      lambda model, _: make_module(NANO, quantization='int8'),
      "quantization 'int8'",
    ),
    (
      lambda model, images: linear_maps.linearize(
        quantize(model), [images], (2,)
      ),
      'the model is quantised',
    ),
  ],
  ids=['arithmetic', 'field', 'fit'],
)
def test_wrong_uses_are_refused(model, images, call, message):
  with pytest.raises(ModelError, match=message):
    call(model, images)
