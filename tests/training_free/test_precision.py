"""Fits and measurements compute in float32, whatever the model's dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lambda_vit_jax as lv
from tests.support.search_models import make_images, make_model

IMAGES = make_images()
FIT = {'ridge': 0.01}

WAYS = {
  'linearize': lambda m: lv.linearize(m, [IMAGES], (0, 2), refit=True, **FIT),
  'narrow': lambda m: lv.narrow(m, [IMAGES], 0.5, **FIT),
  'recentre': lambda m: lv.recentre(lv.prune(m, (1,)), m, [IMAGES]),
}


@pytest.fixture(scope='module')
def models(tiny_variant):
  """A network in float32, and with the same parameters in bfloat16."""
  model = make_model(tiny_variant)
  return model, model.replace(module=model.module.clone(dtype=jnp.bfloat16))


@pytest.mark.parametrize('way', WAYS)
def test_fits_of_half_precision_are_those_of_float32(models, way):
  """To the bit: they are the same programs. The dtype of the model stays."""
  single, half = map(WAYS[way], models)
  jax.tree.map(np.testing.assert_array_equal, half.params, single.params)
  assert half.module.dtype == jnp.bfloat16
  assert half.module == single.module.clone(dtype=jnp.bfloat16)


def test_profiles_of_half_precision_are_those_of_float32(models):
  single, half = (lv.entropy_profile(m, [IMAGES]) for m in models)
  assert half == single
