"""`inputs='auto'`: what is chosen, at what cost, and where it is kept."""

import dataclasses

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints.description import describe, rebuild
from lambda_vit_jax.core.errors import CheckpointError, UsageError
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.build import abstract_params
from lambda_vit_jax.models.macs import size_of
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import input_choice, map_design
from lambda_vit_jax.training_free.least_squares import CrossMoments
from lambda_vit_jax.training_free.linear_maps import (
  LinearizeOptions,
  fit_linear,
)
from tests.support.onnx_numpy import run_graph
from tests.support.search_models import batches_of, make_images, make_model

IMAGES = make_images()


def with_known_attention(model):
  """Block 0 averages 3 x 3 patches (the class token itself), block 1 all tokens.

  The first 17 of 24 channels name the position, and queries and keys read no
  others. For the code c·e_p, n(x) there is α·e_p - δ·1, with the known ratio that
  `clean` removes.
  """
  params = jax.tree.map(np.array, model.params)
  params['patch_embed']['kernel'][..., :17] = 0.0
  params['patch_embed']['bias'][:17] = 0.0
  params['cls_token'][..., :17] = 0.0
  params['pos_embed'][0, :, :17] = 100.0 * np.eye(17)
  place = np.arange(16)
  rows, columns = (
    abs(np.subtract.outer(i, i)) for i in (place // 4, place % 4)
  )
  near = np.eye(17)
  near[1:, 1:] = (rows <= 1) & (columns <= 1)
  clean = np.eye(17) + 1.0 / 7.0
  first, second = (params[block_name(i)] for i in (0, 1))
  first['norm1'] = {'scale': np.ones(24, 'f4'), 'bias': np.zeros(24, 'f4')}
  for block in (first, second):
    fused = block['attn']['qkv']
    fused['kernel'][:, :48] = 0.0
    fused['bias'][:48] = 0.0
  kernel = first['attn']['qkv']['kernel']
  kernel[:17, :17] = 5.0 * clean @ near
  kernel[:17, 24:41] = clean
  return model.replace(params=params)


@pytest.fixture(scope='module')
def fitted(tiny_variant):
  variant = dataclasses.replace(tiny_variant, num_heads=1)
  model = with_known_attention(make_model(variant))
  # Of the attention alone: block 1 would make up for the rest of block 0.
  options = LinearizeOptions(inputs='auto', target='attention')
  return fit_linear(model, batches_of(IMAGES), (0, 1), options)


@pytest.fixture(scope='module')
def mapped(fitted):
  return fitted.model.replace(variant='vit_nano_patch2_8')


def test_blocks_take_what_their_attention_really_is(fitted):
  chosen = [block.inputs for block in fitted.blocks]
  assert chosen == [('token', 'neighbours'), ('token', 'mean')]
  assert fitted.model.module.linear_inputs == (*chosen, ('token',))
  # All but the class token of block 0, one of 17, which averages nothing.
  assert fitted.blocks[0].residual < 0.1
  assert fitted.blocks[1].residual < 1e-3


def test_inputs_per_block_are_counted(mapped):
  found = mapped
  shapes = abstract_params(found.module)
  assert jax.tree.structure(shapes) == jax.tree.structure(found.params)
  assert found.num_parameters == size_of(found.module)
  alike = found.module.clone(linear_inputs=('token',))
  # Two matrices; for 16 patches, and for the mean of one image.
  square = 24 * 24
  assert found.num_parameters - size_of(alike) == 2 * square
  more = found.macs() - found.replace(module=alike).macs()
  assert more == 16 * square + square


def test_inputs_per_block_are_kept(mapped, tmp_path):
  """In files, in an ONNX graph, and where blocks are dropped."""
  found = mapped
  lv.export(found, tmp_path / 'out', formats=('safetensors',))
  for path in ('out', 'out/model.safetensors'):
    again = lv.load_pretrained(tmp_path / path)
    assert again.module.linear_inputs == found.module.linear_inputs
  np.testing.assert_array_equal(again(IMAGES), found(IMAGES))
  # Float32 sums of numbers around 1, in another order.
  np.testing.assert_allclose(
    run_graph(vit.build(found), IMAGES), found(IMAGES), rtol=1e-4, atol=1e-4
  )
  short = lv.drop_blocks(found, (0,))
  assert short.module.linear_inputs == found.module.linear_inputs[1:]


def test_a_damaged_list_of_inputs_is_refused(mapped):
  fields = describe(mapped)
  for wrong in ([['token']], [['token'], ['toe'], ['token']]):
    with pytest.raises(CheckpointError, match='here'):
      rebuild(fields | {'block_inputs': wrong}, 'here')


KNOWN = ('token', 'mean', 'class_map', 'neighbours', 'positions')


@pytest.fixture(scope='module')
def module(tiny_variant):
  return make_model(tiny_variant).module


def groups_for(module, inputs, noise=0.1, own=False):
  """Moments of outputs that are a random map of some inputs, in four folds."""
  rng = np.random.default_rng(0)
  width = map_design.num_columns(module, KNOWN)
  kernel = np.zeros((width, 3))
  if inputs:
    rows = map_design.columns_of(module, KNOWN, inputs)
    kernel[rows] = rng.normal(size=(len(rows), 3))

  def fold(samples, kernel):
    x = rng.normal(size=(samples, width))
    y = x @ kernel + noise * rng.normal(size=(samples, 3))
    mean_in, mean_out = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_in, y - mean_out
    return CrossMoments(
      float(samples), mean_in, mean_out, x.T @ x, x.T @ y, (y * y).sum(axis=0)
    )

  first = -kernel if own else kernel
  return [[fold(300, k) for _ in range(4)] for k in (first, kernel)]


@pytest.mark.parametrize('last', [None, 'mean', 'neighbours', 'positions'])
def test_what_explains_held_out_images_is_taken(module, last):
  inputs = ('token',) if last is None else ('token', last)
  groups = groups_for(module, inputs)
  assert input_choice.choose_inputs(module, KNOWN, 1.0, groups) == inputs
  none = input_choice.choose_inputs(module, KNOWN, 0.0, groups)
  assert none == ('token',)


def test_a_class_token_of_its_own_kind_gets_its_map(module):
  groups = groups_for(module, ('token',), own=True)
  found = input_choice.choose_inputs(module, KNOWN, 1.0, groups)
  assert found == ('token', 'class_map')


def test_the_budget_goes_to_what_pays_most_per_operation(module):
  """Both explain alike, and one is 17 times as dear as the other."""
  groups = groups_for(module, ('token', 'mean', 'neighbours'))
  wide = input_choice.choose_inputs(module, KNOWN, 1.0, groups)
  assert wide == ('token', 'mean', 'neighbours')
  price = input_choice.cost(module, ('token', 'neighbours'))
  least = input_choice.cost(module, ('token',))
  share = (price - least) / (input_choice.most(module, 1.0) - least)
  narrow = input_choice.choose_inputs(module, KNOWN, share + 1e-6, groups)
  assert narrow == ('token', 'mean')


def test_noise_is_worth_nothing(module):
  groups = groups_for(module, (), noise=1.0)
  found = input_choice.choose_inputs(module, KNOWN, 1.0, groups)
  assert found == ('token',)


def test_candidates_are_what_the_model_can_have_and_pay(module):
  everything = input_choice.candidates(module, 1.0)
  assert everything == map_inputs.LINEAR_INPUTS
  assert input_choice.candidates(module, 0.0) == ('token',)
  assert 'mixing' not in input_choice.candidates(module, 0.5)
  small = module.clone(image_size=(4, 4))
  assert 'neighbours' not in input_choice.candidates(small, 1.0)
  bare = module.clone(pooling='avg', class_token=False)
  assert 'class_map' not in input_choice.candidates(bare, 1.0)


@pytest.mark.parametrize(
  'inputs', ['auto:2', 'auto:-1', ('auto:x',), 'auto:nan']
)
def test_an_impossible_budget_is_refused(tiny_variant, inputs):
  model = make_model(tiny_variant)
  with pytest.raises(UsageError, match='give auto:0 to auto:1'):
    lv.linearize(model, [IMAGES], (0,), inputs=inputs)


@pytest.mark.parametrize(
  'inputs, budget',
  [
    ('auto', 0.5),
    (('auto',), 0.5),
    ('auto:0', 0.0),
    (('auto:0.25',), 0.25),
    (('token',), None),
    ('token', None),
    ((), None),
  ],
)
def test_budgets_are_read(inputs, budget):
  assert input_choice.auto_budget(inputs) == budget
