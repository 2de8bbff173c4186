"""Arrays of any library become a model's input; what cannot is one line."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.images import (
  check_values,
  model_images,
  normalise,
  to_array,
)
from lambda_vit_jax.core.preprocessing import Preprocessing
from tests.support.tensors import Tensor

# More columns than rows, and statistics that differ between channels.
RGB = Preprocessing((4, 6))
SHAPE = (4, 6, 3)


def _read(values, preprocessing=RGB):
  return model_images(values, preprocessing, SHAPE, 'batch 0')


@pytest.fixture
def pixels(rng):
  return rng.integers(0, 256, (8, *SHAPE)).astype(np.uint8)


@pytest.fixture
def floats(pixels):
  mean, std = np.array(RGB.mean), np.array(RGB.std)
  return ((pixels / 255 - mean) / std).astype(np.float32)


@pytest.mark.parametrize(
  'kind',
  [
    np.asarray,
    jnp.asarray,
    Tensor,
    lambda x: x.astype(np.int64),
    lambda x: x.tolist(),
    lambda x: Tensor(x.transpose(0, 3, 1, 2)),
  ],
  ids=['NumPy', 'JAX', 'tensor', 'int64', 'lists', 'channels first'],
)
def test_eight_bits_are_normalised(kind, pixels, floats):
  found = _read(kind(pixels))
  assert found.dtype == np.float32
  # A float32 product and sum of numbers below 5.
  np.testing.assert_allclose(np.asarray(found), floats, atol=1e-6)


def test_eight_bits_are_normalised_within_a_program(pixels, floats):
  np.testing.assert_allclose(jax.jit(_read)(pixels), floats, atol=1e-6)


@pytest.mark.parametrize(
  'kind',
  [
    np.asarray,
    jnp.asarray,
    Tensor,
    lambda x: Tensor(x, requires_grad=True, device='cuda:0'),
    lambda x: Tensor(x.transpose(0, 3, 1, 2)),
    lambda x: [Tensor(row) for row in x],
    lambda x: x.astype(np.float64),
  ],
)
def test_normalised_floats_stay_as_they_are(kind, floats):
  found = np.asarray(_read(kind(floats)))
  np.testing.assert_array_equal(found, floats)


@pytest.mark.parametrize('kind', [Tensor, np.asarray, jnp.asarray])
def test_bfloat16_is_read(kind, floats):
  short = floats.astype(ml_dtypes.bfloat16)
  found = np.asarray(_read(kind(short)), np.float32)
  np.testing.assert_array_equal(found, short.astype(np.float32))


def test_what_is_no_tensor_is_left_alone(floats):
  assert to_array(floats) is floats
  assert to_array('path') == 'path'


@pytest.mark.parametrize(
  'values, message',
  [
    (np.zeros((2, 3, 4, 6)), r'channels first; the model takes \(4, 6, 3\)'),
    (np.zeros(SHAPE), r'that of one image: add a batch axis, image\[None\]'),
    (np.zeros((2, 5, 6, 3)), r'shape \(5, 6, 3\); the model takes .* resizes'),
    (np.zeros((1, 2, *SHAPE)), r'has shape \(1, 2, 4, 6, 3\) and holds no'),
    (np.full((1, *SHAPE), 256), 'whole numbers from 0 to 256'),
    (np.full((1, *SHAPE), -1), 'whole numbers from -1 to 0'),
    (np.ones((1, *SHAPE), bool), 'no array of numbers'),
    ([['a.png']], r'no array of numbers .* lv\.image_batches'),
    (None, 'no array of numbers'),
  ],
)
def test_what_cannot_be_images_is_refused(values, message):
  with pytest.raises(DataError, match=message) as raised:
    _read(values)
  assert '\n' not in str(raised.value)
  assert len(str(raised.value)) <= 300


@pytest.mark.parametrize(
  'scale',
  [lambda x: x.astype(np.float32), lambda x: x.astype(np.float32) / 255],
  ids=['0 to 255', '0 to 1'],
)
def test_floats_that_are_not_normalised_are_warned_about(scale, pixels):
  text = check_values(scale(pixels), RGB, 'batch 0')
  assert 'normalised ones lie within -2.12 to' in text


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value, floats):
  floats[3, 2, 1] = value
  with pytest.raises(DataError, match='batch 0 has NaN or infinite values'):
    check_values(floats, RGB, 'batch 0')


def test_normalised_floats_are_not_warned_about(floats, rng):
  erased = rng.normal(size=floats.shape)
  unit = Preprocessing((4, 6), (0.0,) * 3, (1.0,) * 3)
  for images in (
    floats,
    erased,
    np.zeros_like(floats),
    # A few bright pictures.
    rng.random((7, *SHAPE)),
    np.zeros((0, *SHAPE)),
  ):
    assert not check_values(images, RGB, 'batch 0')
  # Values in [0, 1] are what this model takes.
  assert not check_values(rng.random(floats.shape), unit, 'batch 0')


@pytest.mark.parametrize('leading', [(), (2,), (2, 3)])
def test_normalise_takes_any_leading_axes(leading, rng):
  pixels = rng.integers(0, 256, (*leading, *SHAPE)).astype(np.uint8)
  expected = (pixels / 255 - np.array(RGB.mean)) / np.array(RGB.std)
  out = np.empty(pixels.shape, np.float32)
  assert normalise(pixels, RGB, out) is out
  np.testing.assert_allclose(out, expected, atol=1e-6)
