"""Exports of 8-bit integers: small, checked, and the same model when loaded."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.load import load_export, load_pretrained
from lambda_vit_jax.core.errors import CheckpointError, ModelError, UsageError
from lambda_vit_jax.exporters import export
from lambda_vit_jax.exporters.comparison import difference
from lambda_vit_jax.exporters.formats import read_stablehlo
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.edits import dequantize, fold, quantize
from lambda_vit_jax.models.model import create_model
from tests.support.onnx_numpy import run_graph
from tests.support.small_models import NANO
from tests.support.trees import assert_same

FILES = ('safetensors', 'stablehlo')


@pytest.fixture(scope='module')
def pruned():
  return create_model(NANO, seed=3, removed_layers=(1,))


@pytest.fixture(scope='module')
def exported(pruned, tmp_path_factory):
  folder = tmp_path_factory.mktemp('int8') / 'export'
  return folder, export.export(pruned, folder, FILES, dtype='int8')


@pytest.mark.parametrize('name', ['', 'model.safetensors'])
def test_both_readers_return_the_quantised_model(
  exported, pruned, images, name
):
  folder, _ = exported
  expected = quantize(pruned)
  found = load_pretrained(folder / name)
  assert_same(found.params, (fold(expected) if name else expected).params)
  # Another order of float32 sums.
  np.testing.assert_allclose(found(images), expected(images), atol=1e-5)


def test_program_and_report_of_the_quantised_model(exported, pruned, images):
  folder, report = exported
  expected = quantize(pruned)
  program = read_stablehlo(folder / 'model.stablehlo')
  np.testing.assert_allclose(program(images), expected(images), atol=1e-5)
  fields = json.loads((folder / 'model.json').read_text())
  assert fields['quantization'] == 'weights'
  assert fields['folded']['dtype'] == 'int8'
  assert fields['num_parameters'] == pruned.num_parameters
  differences = report['differences']
  assert differences['orbax'] == 0.0
  assert max(differences['safetensors'], differences['stablehlo']) < 1e-5
  assert 1e-5 < differences['quantization'] < 0.1
  (warning,) = report['warnings']
  assert 'weight * weight_scale' in warning


def test_an_integer_is_a_byte(exported, pruned):
  folder, report = exported
  bytes_of_tree = sum(
    leaf.nbytes for leaf in jax.tree.leaves(quantize(pruned).params)
  )
  # Headers with names, offsets and the description twice.
  assert report['bytes']['model.safetensors'] < bytes_of_tree + 10_000
  program = (folder / 'model.stablehlo').read_bytes()
  kernel = fold(quantize(pruned)).params
  assert np.asarray(kernel['block00']['mlp']['fc1']['kernel']).tobytes() in (
    program
  )


def test_deit_s_is_a_quarter():
  module = make_module('deit_small_patch16_224')
  full = abstract_params(module)
  small = abstract_params(module.clone(quantization='weights'))
  sizes = [
    sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    for tree in (full, small)
  ]
  # Positions, norms and biases are half a percent of the numbers.
  assert 0.25 < sizes[1] / sizes[0] < 0.26


@pytest.mark.parametrize(
  'name, path',
  [
    ('blocks.0.attn.qkv', 'block00/attn/qkv'),
    ('blocks.1.mlp.fc2', 'block01/mlp/fc2'),
    ('head', 'head'),
  ],
)
def test_weights_have_scales(exported, pruned, name, path):
  folder, _ = exported
  arrays = load_file(folder / 'model.safetensors')
  params = convert.flatten(dequantize(fold(quantize(pruned))).params)
  weight = arrays[f'{name}.weight']
  assert weight.dtype == np.int8
  np.testing.assert_array_equal(
    (weight.astype(np.float32) * arrays[f'{name}.weight_scale']).T,
    params[f'{path}/kernel'],
  )


def test_the_patch_embedding_has_scales(exported, pruned):
  folder, _ = exported
  arrays = load_file(folder / 'model.safetensors')
  folded = dequantize(fold(quantize(pruned)))
  patches = arrays['patch_embed.proj.weight'].astype(np.float32)
  patches = patches * arrays['patch_embed.proj.weight_scale']
  np.testing.assert_array_equal(
    patches.transpose(2, 3, 1, 0), folded.params['patch_embed']['kernel']
  )


def test_floats_in_place_of_integers_are_refused(exported, tmp_path):
  folder, _ = exported
  from safetensors import safe_open

  with safe_open(folder / 'model.safetensors', framework='numpy') as file:
    metadata = file.metadata()
  arrays = load_file(folder / 'model.safetensors')
  arrays['head.weight'] = arrays['head.weight'].astype(np.float32)
  # Without its digest, which would tell first.
  del metadata['sha256']
  save_file(arrays, tmp_path / 'model.safetensors', metadata=metadata)
  with pytest.raises(CheckpointError, match=r'head\.weight is float32'):
    load_pretrained(tmp_path / 'model.safetensors')


def test_dynamic_arithmetic_goes_into_the_program(pruned, images, tmp_path):
  folder = tmp_path / 'out'
  report = export.export(
    pruned, folder, ('stablehlo',), dtype='int8', int8_arithmetic='dynamic'
  )
  found = load_export(folder)
  assert found.module.quantization == 'dynamic'
  program = read_stablehlo(folder / 'model.stablehlo')
  allowed = report['differences']['quantization']
  assert difference(found(images), program(images)) <= allowed
  from jax import export as jax_export

  data = bytearray((folder / 'model.stablehlo').read_bytes())
  text = jax_export.deserialize(data).mlir_module()
  assert 'xi8>' in text
  assert 'xi32>' in text


def test_onnx_dequantises(pruned, images):
  """The file holds the integers; a runtime makes them floats once."""
  folded = fold(quantize(pruned))
  graph = vit.build(folded)
  assert graph.arrays['block00/mlp/fc1/kernel.stored'].dtype == np.int8
  # Float32 sums in another order.
  np.testing.assert_allclose(
    run_graph(graph, images), folded(images), atol=1e-5
  )


@pytest.mark.parametrize(
  'options, message',
  [
    ({'zero_fill': True}, 'zero_fill is for stock timm'),
    (
      {'formats': ('onnx',), 'int8_arithmetic': 'dynamic'},
      'int8_arithmetic=dynamic',
    ),
    ({'int8_arithmetic': 'fast'}, "int8_arithmetic='fast'"),
  ],
  ids=['zero_fill', 'onnx', 'unknown'],
)
def test_what_does_not_go_together(pruned, tmp_path, options, message):
  with pytest.raises(UsageError, match=message):
    export.export(pruned, tmp_path / 'out', dtype='int8', **options)
  assert list(tmp_path.iterdir()) == []


def test_a_quantised_model_has_no_float_export(pruned, tmp_path):
  with pytest.raises(ModelError, match='the model is quantised'):
    export.export(quantize(pruned), tmp_path / 'out', dtype='float32')
  assert list(tmp_path.iterdir()) == []


def test_an_int8_export_is_no_start_of_training_but_its_floats_are(exported):
  folder, _ = exported
  model = dequantize(load_pretrained(folder))
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(model.params))
