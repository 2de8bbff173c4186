"""Warm start: λ fades from attention to an affine map, then to the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.cli.stages import dilute
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.build import abstract_params, forward
from lambda_vit_jax.models.map_inputs import LINEAR_INPUTS
from lambda_vit_jax.training import dilution
from lambda_vit_jax.training.dilution import Dilution
from tests.support.search_models import make_images, make_model

IMAGES = make_images()

# Equal but for fusion: products with exactly 1 and 0.
SAME_SUMS = {'rtol': 1e-5, 'atol': 1e-5}


CASES = [
  (('token',), (0, 2), ()),
  (LINEAR_INPUTS, (0, 2), ()),
  # Pruned before: its first block doubles the stream and stays so.
  (('token',), (2,), (0,)),
]


@pytest.fixture(scope='module', params=CASES, ids=str)
def models(request, tiny_variant):
  """The given model, one with affine maps instead of attention, and where."""
  inputs, layers, before = request.param
  given = make_model(tiny_variant, layer_scale=0.5)
  given = lv.prune(given, before) if before else given
  return given, lv.linearize(given, [IMAGES], layers, inputs=inputs), layers


def phase_logits(models, index, factor):
  """Logits of the network of a phase, with the parameters of its state."""
  dense, fitted, layers = models
  phases = dilute.warm_phases(
    dense.module, fitted.module, layers, halfway=4, diluting=10, total=12
  )
  params = dilute.with_maps(dense.params, fitted.params, layers)
  for phase in phases[: index + 1]:
    params = surgery.keep_maps(params, phase.linear)
    params = surgery.prune_tree(params, phase.removed)
  module = phases[index].module
  shapes = abstract_params(module)
  assert jax.tree.structure(shapes) == jax.tree.structure(params)
  vector = dilution.factor_vector(factor, layers, dense.depth)
  return forward(module, params, IMAGES, vector)[0]


def test_begins_as_the_dense_model(models):
  np.testing.assert_allclose(
    phase_logits(models, 0, 1.0), models[0](IMAGES), **SAME_SUMS
  )


@pytest.mark.parametrize('index, factor', [(0, 0.0), (1, 1.0)])
def test_is_the_linear_model_halfway(models, index, factor):
  """At the end of the first half and at the beginning of the second."""
  np.testing.assert_allclose(
    phase_logits(models, index, factor), models[1](IMAGES), **SAME_SUMS
  )


@pytest.mark.parametrize('index', [1, 2])
def test_ends_as_the_identity_model(models, index):
  np.testing.assert_allclose(
    phase_logits(models, index, 0.0),
    lv.prune(models[0], models[2])(IMAGES),
    **SAME_SUMS,
  )


def test_factor_is_a_pure_function_of_the_step():
  plan = Dilution((0,), 6, halfway=2)
  factors = [float(plan.factor(jnp.int32(step))) for step in range(9)]
  assert factors == [1.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0]


def test_a_model_in_warm_start_can_be_described(models):
  from lambda_vit_jax.checkpoints.description import describe, rebuild

  dense, fitted, layers = models
  phases = dilute.warm_phases(
    dense.module, fitted.module, layers, halfway=4, diluting=10, total=12
  )
  for phase in phases[:2]:
    model = dense.replace(module=phase.module, variant='vit_nano_patch2_8')
    found = rebuild(describe(model), 'here')
    assert found.module.dilution_path == phase.module.dilution_path
