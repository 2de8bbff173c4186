"""The tables of names: `encode` inverts `decode`, and `decode` is strict."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambda_vit_jax.checkpoints import convert, google_names, infer
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models import map_inputs, resampling
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.macs import count_parameters
from tests.support.family_members import (
  MEMBERS,
  google_arrays,
  synthetic_arrays,
)
from tests.support.trees import assert_same, numbered


def zeros(shapes):
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


def module_of(member, modes=None):
  return make_module(member.variant, attention_modes=modes)


def decode(arrays, expected, rules=convert.TIMM):
  shapes = {name: array.shape for name, array in arrays.items()}
  return convert.decode(
    shapes, arrays.__getitem__, expected, 'model.safetensors', rules
  )


MODES = (('full', 'full'), ('identity', 'full'), ('full', 'linear'))


@pytest.mark.parametrize('modes', MODES, ids=str)
@pytest.mark.parametrize('member', MEMBERS, ids=lambda member: member.name)
def test_round_trip_is_bit_equal(member, modes):
  expected = abstract_params(module_of(member, modes))
  params = numbered(expected)
  arrays = convert.encode(params)
  assert sum(a.size for a in arrays.values()) == (count_parameters(params))
  assert_same(decode(arrays, expected), params)


def test_removed_blocks_have_no_arrays():
  variant = dataclasses.replace(MEMBERS[0].variant, depth=3)
  module = make_module(variant, attention_modes=('absent', 'linear', 'full'))
  params = zeros(abstract_params(module))
  names = set(convert.encode(params))
  assert not [
    n for n in names if n.startswith(('blocks.0.norm1', 'blocks.0.a'))
  ]
  assert {
    n for n in names if n.startswith(('blocks.1.a', 'blocks.1.norm1'))
  } == {
    'blocks.1.attn.linear.weight',
    'blocks.1.attn.linear.bias',
  }


def test_maps_have_the_documented_names():
  """Those of docs/pytorch.md, whose lines build a map from its arrays."""
  variant = dataclasses.replace(MEMBERS[0].variant, depth=2)
  module = make_module(
    variant,
    attention_modes=('linear', 'full'),
    linear_inputs=map_inputs.LINEAR_INPUTS,
  )
  params = numbered(abstract_params(module))
  arrays = convert.encode(params)
  prefix = 'blocks.0.attn.'
  matrices = ('mean', 'neighbours', 'mixed', 'class_mean', 'class_mixed')
  affine = ('linear', 'class_linear', 'values')
  assert {n.removeprefix(prefix) for n in arrays if n.startswith(prefix)} == {
    *(f'{name}.weight' for name in (*matrices, *affine)),
    *(f'{name}.bias' for name in affine),
    'positions.bias',
    'mixer.weights',
  }
  assert_same(decode(arrays, abstract_params(module)), params)
  np.testing.assert_array_equal(
    arrays[f'{prefix}mixer.weights'],
    params['block00']['attn']['mixer']['weights'],
  )


@pytest.mark.parametrize('rules', [convert.TIMM, google_names.GOOGLE])
def test_every_rule_has_its_own_name_and_parameter(rules):
  targets = [target for _, target, _ in rules]
  sources = [
    name
    for names, _, _ in rules
    for name in ((names,) if isinstance(names, str) else names)
  ]
  assert len(set(targets)) == len(targets)
  assert len(set(sources)) == len(sources)


def test_google_names_and_heads():
  params, arrays = google_arrays(MEMBERS[0], heads=3)
  expected = abstract_params(module_of(MEMBERS[0]))
  assert_same(decode(arrays, expected, google_names.GOOGLE), params)
  # The layout in words: q, k, v side by side, head after head.
  kernel = params['block01']['attn']['qkv']['kernel']
  mixer = 'Transformer/encoderblock_1/MultiHeadDotProductAttention_1'
  key = arrays[f'{mixer}/key/kernel']
  np.testing.assert_array_equal(kernel[:, 24 + 8 : 24 + 16], key[:, 1])


def tiny():
  """One member with its arrays and the parameters expected of them."""
  expected = abstract_params(module_of(MEMBERS[0]))
  return convert.encode(zeros(expected)), expected


def test_one_report_lists_everything_that_is_wrong():
  arrays, expected = tiny()
  del arrays['blocks.0.attn.qkv.bias'], arrays['blocks.1.attn.qkv.bias']
  arrays['blocks.7.norm1.weight'] = np.zeros(24, np.float32)
  arrays['head.weight'] = np.zeros((7, 24), np.float32)
  with pytest.raises(CheckpointError) as caught:
    decode(arrays, expected)
  assert str(caught.value) == (
    'model.safetensors: missing: blocks.{0-1}.attn.qkv.bias; unexpected: '
    'blocks.7.norm1.weight; wrong shape: head.weight is 7×24, expected 5×24'
  )


def test_a_rank_that_cannot_be_transposed_is_a_wrong_shape():
  arrays, expected = tiny()
  arrays['patch_embed.proj.weight'] = np.zeros(3, np.float32)
  with pytest.raises(CheckpointError, match=r'is 3, expected 24×3×4×4'):
    decode(arrays, expected)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
  arrays, expected = tiny()
  arrays['blocks.1.mlp.fc1.bias'][3] = value
  with pytest.raises(CheckpointError, match=r'NaN.*blocks\.1\.mlp\.fc1\.bias'):
    decode(arrays, expected)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_every_float_becomes_float32(dtype):
  arrays, expected = tiny()
  arrays = {
    name: np.asarray(jax.numpy.ones(a.shape, dtype))
    if dtype != 'float64'
    else np.ones(a.shape)
    for name, a in arrays.items()
  }
  for leaf in jax.tree.leaves(decode(arrays, expected)):
    assert leaf.dtype == np.float32
    assert (leaf == 1).all()


def test_grouping_of_names():
  names = [f'blocks.{i}.norm1.bias' for i in (0, 1, 2, 5, 11)]
  assert convert.grouped([*names, 'head.bias']) == [
    'blocks.{0-2,5,11}.norm1.bias',
    'head.bias',
  ]


def resize_matrix(source, target):
  """Weights `[target, source]` of resizing a grid of one column."""
  one_hot = np.eye(source)[None]
  found = resampling.resize_positions(one_hot, (source, 1), (target, 1), 0)
  return found[0]


@pytest.mark.parametrize(
  'name, found',
  [
    ('vit_mini_patch2_8', {'vit_mini_patch2_8'}),
    (
      'deit_tiny_patch16_224',
      {'deit_tiny_patch16_224', 'vit_tiny_patch16_224'},
    ),
    ('vit_tiny_patch16_384', {'vit_tiny_patch16_384'}),
    (
      'deit_tiny_distilled_patch16_224',
      {'deit_tiny_distilled_patch16_224'},
    ),
    ('deit3_small_patch16_224', {'deit3_small_patch16_224'}),
    ('vit_small_patch14_dinov2', {'vit_small_patch14_dinov2'}),
    ('vit_small_patch14_reg4_dinov2', {'vit_small_patch14_reg4_dinov2'}),
    (
      'vit_base_patch16_clip_224',
      {'vit_base_patch16_clip_224', 'vit_base_patch16_clip_quickgelu_224'},
    ),
  ],
)
def test_variants_are_recognised_by_their_shapes(name, found):
  params = abstract_params(make_module(name))
  shapes = {}
  for path, leaf in convert.flatten(params).items():
    (source,), transform = convert.source_names(path)
    (array,) = transform.encode(np.broadcast_to(np.float32(0), leaf.shape))
    shapes[source] = array.shape
  assert set(infer.candidates(shapes)) == found
  # At another image size the position slots fit nothing; the rest does.
  shapes['pos_embed'] = (1, 12345, shapes['pos_embed'][2])
  assert name in infer.candidates(shapes)


@settings(max_examples=30)
@given(source=st.integers(1, 40), target=st.integers(1, 40))
def test_resizing_keeps_constants(source, target):
  weights = resize_matrix(source, target)
  assert weights.shape == (target, source)
  # Rows sum to one up to float64 rounding of at most 40 terms.
  np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-13)


@given(size=st.integers(1, 40))
def test_resizing_to_the_same_size_is_the_identity(size):
  # The cubic kernel is 1 at 0 and 0 at whole numbers, exactly.
  np.testing.assert_array_equal(resize_matrix(size, size), np.eye(size))


def test_resizing_reproduces_straight_lines_inside():
  # Keys' kernel is exact on polynomials up to degree 1 at least; borders are
  # renormalised and are not.
  source, target = 16, 32
  line = np.arange(source) + 0.5
  found = resize_matrix(source, target) @ line
  expected = (np.arange(target) + 0.5) * source / target
  np.testing.assert_allclose(found[4:-4], expected[4:-4], rtol=1e-12)


def test_prefix_slots_are_kept(rng):
  positions = rng.normal(size=(1, 2 + 9, 4)).astype(np.float32)
  found = resampling.resize_positions(positions, (3, 3), (2, 5), 2)
  assert found.shape == (1, 2 + 10, 4)
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found[:, :2], positions[:, :2])


def test_synthetic_arrays_do_not_depend_on_order():
  shapes = {'head.weight': (2, 3), 'head.bias': (2,)}
  backwards = dict(reversed(shapes.items()))
  for name, array in synthetic_arrays(shapes).items():
    np.testing.assert_array_equal(array, synthetic_arrays(backwards)[name])
