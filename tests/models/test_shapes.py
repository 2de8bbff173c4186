"""The shapes and dtypes in docstrings, written and checked with jaxtyping.

They are checked here and not at run time: the package does not depend on
jaxtyping, and modes and heads change the shape that a call returns.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, UInt8, jaxtyped

import lambda_vit_jax as lv
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import transforms
from lambda_vit_jax.training import dilution
from lambda_vit_jax.training_free import least_squares

MODES = (
  ('full', 'full', 'full'),
  ('diluted', 'full', 'diluted'),
  ('full', 'identity', 'full'),
  ('skip', 'full', 'full'),
)


@pytest.fixture(scope='module')
def model():
  return lv.create_model('vit_nano_patch2_8', seed=1)


@pytest.mark.parametrize('modes', MODES)
def test_what_apply_returns(model, images, modes):
  if 'identity' in modes:
    model, modes = lv.prune(model, [modes.index('identity')]), None
  factor = jnp.ones(3) if modes and 'diluted' in modes else None
  logits, taps = model.apply(images, modes, factor)
  with jaxtyped('context'):
    assert isinstance(images, Float[np.ndarray, 'batch height width channels'])
    assert isinstance(logits, Float[Array, 'batch classes'])
    assert isinstance(taps['features'], Float[Array, 'batch width_of_token'])
    for index in range(model.depth):
      for name, tap in taps[f'block{index:02d}'].items():
        shape = Float[Array, 'batch tokens width_of_token']
        assert isinstance(tap, shape), (index, name)


def test_what_a_call_returns(model, images):
  with jaxtyped('context'):
    assert isinstance(images, Float[np.ndarray, 'batch h w c'])
    assert isinstance(model(images), Float[Array, 'batch 10'])


def test_the_schedule_has_a_factor_per_block():
  assert isinstance(dilution.factor_vector(0.5, (0, 2), 4), Float[Array, '4'])


def test_sums_for_least_squares(rng):
  x, y = rng.normal(size=(2, 20, 5)).astype(np.float32)
  sums = least_squares.batch_sums(
    jnp.asarray(x), jnp.asarray(y[:, :3]), jnp.ones(20, bool)
  )
  shapes = ('', 'inputs', 'outputs', 'inputs', 'outputs', 'inputs inputs')
  shapes += ('inputs outputs', 'outputs')
  with jaxtyped('context'):
    for value, shape in zip(sums, shapes, strict=True):
      assert isinstance(value, Float[Array, shape]), shape


def test_pixels_and_their_normalised_array(rng):
  pre = Preprocessing((6, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), 0.9, 'bicubic')
  stored = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
  with jaxtyped('context'):
    pixels = transforms.evaluation_pixels(stored, pre)
    assert isinstance(pixels, UInt8[np.ndarray, 'height width channels'])
    array = transforms.evaluation_array(stored, pre)
    assert isinstance(array, Float[np.ndarray, 'height width channels'])
