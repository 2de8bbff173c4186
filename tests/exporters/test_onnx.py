"""The ONNX graph, run by a few lines of numpy: what timm computes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models.build import init_params, make_module
from lambda_vit_jax.models.edits import fold, merge_tokens
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.family_members import (
  MEMBERS,
  synthetic_arrays,
  synthetic_images,
)
from tests.support.golden import GOLDEN, assert_close
from tests.support.onnx_numpy import run_graph
from tests.support.small_models import with_linear

FAR_INPUTS = ('token', 'mean', 'neighbours', 'positions', 'mixing')


@pytest.mark.parametrize('member', MEMBERS, ids=lambda member: member.name)
def test_graph_of_every_family_gives_timms_logits(
  member, tmp_path, monkeypatch
):
  monkeypatch.setitem(VARIANTS, member.name, member.variant)
  with np.load(GOLDEN / f'{member.name}.npz') as file:
    golden = dict(file)
  arrays = synthetic_arrays(json.loads(str(golden['shapes'])))
  path = tmp_path / 'model.safetensors'
  save_file(arrays, path)
  for size in member.image_sizes:
    model = load_pretrained(path, variant=member.name, image_size=size)
    logits = run_graph(vit.build(model), synthetic_images(size))
    assert_close(logits, golden[f'{size}/logits'])


@pytest.fixture(scope='module')
def pruned():
  return create_model('vit_nano_patch2_8', seed=3, removed_layers=(1,))


@pytest.mark.parametrize('options', [{}, {'norm_before_pool': False}])
def test_average_pooling(options, images):
  model = create_model('vit_nano_patch2_8', pooling='avg', **options)
  assert_close(run_graph(vit.build(model), images), model(images))


def test_removed_and_linear_blocks(pruned, images):
  folded = fold(with_linear(pruned))
  graph = vit.build(folded)
  assert_close(run_graph(graph, images), with_linear(pruned)(images))
  # A removed attention layer leaves no node and no array.
  operators = [node.operator for node in graph.nodes]
  assert operators.count('Softmax') == 1
  assert not [name for name in graph.arrays if 'block01/attn' in name]
  assert not [name for name in graph.arrays if 'block01/norm1' in name]


def test_unfolded_models_are_refused(pruned):
  with pytest.raises(ModelError, match='block 1: fold the model'):
    vit.build(pruned)


def test_half_precision_is_stored_where_it_is_exact(pruned, images):
  folded = fold(pruned)
  rounded = folded.replace(
    params=jax.tree.map(
      lambda x: np.asarray(x, np.float16).astype(np.float32), folded.params
    )
  )
  graph = vit.build(rounded, 'float16')
  kernel = graph.arrays['block00/mlp/fc1/kernel.stored']
  assert kernel.dtype == np.float16
  floats = vit.build(rounded)
  np.testing.assert_array_equal(
    run_graph(graph, images), run_graph(floats, images)
  )
  # What float16 would change stays as it is.
  graph = vit.build(folded, 'float16')
  assert graph.arrays['block00/mlp/fc1/kernel'].dtype == np.float32


@pytest.mark.parametrize('class_map', [(), ('class_map',)])
@pytest.mark.parametrize('fields', [{}, {'pooling': 'avg', 'num_registers': 2}])
def test_maps_of_every_input(tiny_variant, images, rng, fields, class_map):
  """The last map on all tokens, or on the class token alone."""
  variant = dataclasses.replace(tiny_variant, **fields)
  module = make_module(
    variant,
    attention_modes=('linear', 'full', 'linear'),
    linear_inputs=(*FAR_INPUTS, *class_map),
  )
  # The maps start as zeros.
  params = jax.tree.map(
    lambda leaf: leaf + rng.normal(size=leaf.shape, scale=0.1).astype('f4'),
    init_params(module, 0),
  )
  model = Model(module, params, 'tiny', variant.preprocessing((8, 8)))
  logits = run_graph(vit.build(model), images)
  # Float32 sums of numbers around 1, in another order.
  np.testing.assert_allclose(logits, model(images), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    model(images), model.apply(images)[0], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'pooling': 'avg', 'num_registers': 2, 'layer_scale': 0.5},
  ],
)
def test_merged_tokens(tiny_variant, images, fields):
  variant = dataclasses.replace(tiny_variant, **fields)
  module = make_module(
    variant,
    attention_modes=('full', 'linear', 'full'),
    linear_inputs=('token', 'mean', 'class_map'),
  )
  params = init_params(module, 0)
  # The maps start as zeros.
  params['block01']['attn'] = jax.tree.map(
    lambda leaf: leaf + 0.1, params['block01']['attn']
  )
  model = Model(module, params, 'tiny', variant.preprocessing((8, 8)))
  # Half of them, and then all of the first set but one.
  merged = merge_tokens(model, [8, 0, 3])
  logits = run_graph(vit.build(merged), images)
  # Float32 sums of numbers around 1, in another order.
  np.testing.assert_allclose(logits, merged(images), rtol=1e-4, atol=1e-5)
  assert np.abs(logits - model(images)).max() > 1e-4
