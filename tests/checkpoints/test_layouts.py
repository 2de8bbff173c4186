"""Each family's file as every other variant: refused, or the same function.

A program that ignores an array, or takes one for another, passes all tests
that load a file as what it is; here it computes logits that are not the
file's.
"""

import dataclasses
import json
import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.models.variants import VARIANTS
from tests.support.family_members import (
  MEMBERS,
  Member,
  synthetic_arrays,
  synthetic_images,
)
from tests.support.golden import GOLDEN, assert_close

# All in one size, so that nothing but the layout tells them apart.
FAMILIES = tuple(
  dataclasses.replace(member, patch_size=4, image_sizes=(16, 24), num_classes=5)
  for member in MEMBERS
)


def function_of(model):
  """What decides the logits besides the parameters."""
  module = model.module
  # Of these, files say nothing: a variant's name stands for them.
  return module.clone(
    norm_eps=(1e-6,) * 3,
    pre_norm_eps=1e-6,
    # Its value is that of new parameters.
    layer_scale=module.layer_scale and 1.0,
  )


def file_of(member, folder):
  shapes = convert.flatten(abstract_params(make_module(member.variant)))
  named = convert.encode(
    convert.unflatten(
      {
        name: np.broadcast_to(np.float32(0), leaf.shape)
        for name, leaf in shapes.items()
      }
    )
  )
  path = folder / f'{member.name}.safetensors'
  save_file(synthetic_arrays({k: v.shape for k, v in named.items()}), path)
  return path


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp('layouts')
  return {member.name: file_of(member, folder) for member in FAMILIES}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  for member in FAMILIES:
    monkeypatch.setitem(VARIANTS, member.name, member.registered)


def pair(member, other):
  """Two members; those that differ in many arrays wait for the slow tests."""
  later = ('siglip', 'dinov3', 'eva02', 'beit')
  far = any(kind in x.family for kind in later for x in (member, other))
  marks = [pytest.mark.slow] if far and member != other else []
  return pytest.param(
    member, other, marks=marks, id=f'{member.name}-{other.name}'
  )


@pytest.mark.parametrize(
  'member, other',
  [pair(member, other) for other in FAMILIES for member in FAMILIES],
)
def test_no_layout_loads_as_another_function(member, other, files):
  try:
    found = load_pretrained(files[member.name], variant=other.name)
  except CheckpointError:
    found = None
  if found is None:
    assert member.name != other.name
    return
  own = load_pretrained(files[member.name], variant=member.name)
  assert own.module.pooling == member.variant.pooling
  module = function_of(found)
  if member.variant.activation != other.variant.activation:
    # Equal arrays: only the name that was given tells these two apart, and
    # without one both are offered (test_load).
    assert {member.family, other.family} == {
      'vit_base_patch16_clip_224',
      'vit_base_patch16_clip_quickgelu_224',
    }
    module = module.clone(activation=member.variant.activation)
  assert module == function_of(own)


def config(member, **changes):
  return {'architecture': member.name, 'num_classes': 5} | changes


def saved(tmp_path, member, fields):
  """A folder with a golden's weights and a config.json."""
  with np.load(GOLDEN / f'{member.name}.npz') as file:
    arrays = synthetic_arrays(json.loads(str(file['shapes'])))
  save_file(arrays, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  return arrays


MAE = Member('vit_base_patch16_224.mae', pooling='avg')
IMAGENET = {'mean': [0.485, 0.456, 0.406], 'std': [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
  'changes, pooling',
  [
    ({}, 'avg'),
    ({'global_pool': 'avg'}, 'avg'),
    ({'model_args': {'global_pool': 'avg'}}, 'avg'),
    ({'model_args': {'global_pool': 'avg', 'fc_norm': True}}, 'avg'),
    ({'model_args': {'global_pool': 'token', 'fc_norm': True}}, 'token'),
  ],
)
def test_fc_norm_with_what_config_json_says(changes, pooling, tmp_path, caplog):
  fields = config(MAE, pretrained_cfg=IMAGENET, **changes)
  saved(tmp_path, MAE, fields)
  with caplog.at_level(logging.WARNING):
    model = load_pretrained(tmp_path)
  assert (model.module.pooling, model.module.norm_before_pool) == (
    pooling,
    False,
  )
  # Where the names alone decide, it is said.
  assert len(caplog.records) == (not changes)
  with np.load(GOLDEN / f'{MAE.name}.npz') as golden:
    if pooling == 'avg':
      assert_close(model(synthetic_images(16)), golden['16/logits'])


@pytest.mark.parametrize(
  'changes',
  [
    {'global_pool': 'token'},
    {'model_args': {'global_pool': 'avg', 'fc_norm': False}},
    {'model_args': {'fc_norm': False}},
  ],
)
def test_fc_norm_against_config_json_is_refused(changes, tmp_path):
  saved(tmp_path, MAE, config(MAE, pretrained_cfg=IMAGENET, **changes))
  with pytest.raises(CheckpointError, match='unexpected: fc_norm'):
    load_pretrained(tmp_path)


def test_a_mean_of_normed_patches_needs_its_config_json(tmp_path):
  member = Member('deit_tiny_patch16_224')
  arguments = {'global_pool': 'avg', 'fc_norm': False}
  fields = config(member, model_args=arguments, pretrained_cfg=IMAGENET)
  saved(tmp_path, member, fields)
  model = load_pretrained(tmp_path)
  assert (model.module.pooling, model.module.norm_before_pool) == ('avg', True)
  _, taps = model.apply(synthetic_images(16))
  stream = np.asarray(taps['block01']['output'], np.float64)
  normal = stream - stream.mean(axis=-1, keepdims=True)
  normal /= np.sqrt(stream.var(axis=-1, keepdims=True) + 1e-6)
  norm = model.params['norm']
  normal = normal * np.float64(norm['scale']) + np.float64(norm['bias'])
  # float32 against float64.
  np.testing.assert_allclose(
    taps['features'], normal[:, 1:].mean(axis=1), atol=1e-5
  )


@pytest.mark.parametrize(
  'options', [{'pooling': 'avg'}, {'norm_before_pool': False}]
)
def test_a_distilled_network_has_no_other_readout(options):
  name = 'deit_tiny_distilled_patch16_224'
  with pytest.raises(ModelError, match='distilled'):
    create_model(name, image_size=16, **options)
