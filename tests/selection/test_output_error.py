"""The criterion `output` equals fitting and comparing each candidate by hand."""

import dataclasses

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.adapt import backbone
from lambda_vit_jax.selection import output_error
from lambda_vit_jax.selection.criteria import choose
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images(130)
SCORED = np.arange(130) % 4 == 3
INPUTS = ('token', 'mean')

# A mean of float32 divergences of order 1; maps are solved from sums of
# float32 products.
CLOSE = 2e-4


def divergence(dense, model, images):
  rows = [np.asarray(m(images), np.float64) for m in (dense, model)]
  wanted, found = (
    row - np.log(np.exp(row).sum(axis=1, keepdims=True)) for row in rows
  )
  return (np.exp(wanted) * (wanted - found)).sum(axis=1).mean()


def feature_error(dense, model, images):
  rows = [np.asarray(m(images), np.float64) for m in (dense, model)]
  return ((rows[0] - rows[1]) ** 2).mean()


def by_hand(model, number, error):
  """One fit and one forward pass per candidate, fitted images left out."""
  removed, rounds = (), []
  for _ in range(number):
    left = [i for i in range(model.depth) if i not in removed]
    scores = {}
    for block in left:
      # The candidate aims at the dense stream, but no later map follows it.
      maps = lv.linearize(
        model, [IMAGES[~SCORED]], sorted((*removed, block)), inputs=INPUTS
      )
      if block != max((*removed, block)):
        first = lv.linearize(model, [IMAGES[~SCORED]], removed, inputs=INPUTS)
        maps = together(first, model, maps, block)
      scores[block] = error(model, maps, IMAGES[SCORED])
    rounds.append(scores)
    removed = (*removed, choose(scores))
  return removed, rounds


def together(first, model, maps, block):
  """The maps of `first`, and of `maps` that of one earlier block."""
  name = f'block{block:02d}'
  modes = tuple(
    'linear' if index == block else mode
    for index, mode in enumerate(first.attention_modes)
  )
  return first.replace(
    module=first.module.clone(attention_modes=modes),
    params=first.params | {name: maps.params[name]},
  )


@pytest.mark.parametrize(
  'target', ['logits', pytest.param('features', marks=pytest.mark.slow)]
)
def test_scores_are_those_of_comparing_one_by_one(tiny_variant, target):
  model = make_model(tiny_variant, depth=4)
  error = divergence
  if target == 'features':
    model, error = backbone(model), feature_error
  order, rounds = by_hand(model, 2, error)
  found = lv.nose(
    model,
    batches_of(IMAGES, 50),
    num_layers=2,
    target=target,
    criterion='output',
    inputs=INPUTS,
    resamples=0,
  )
  assert found.order == order
  assert found.trial == 'linear'
  for mine, exact in zip(found.rounds, rounds, strict=True):
    assert mine.scores == pytest.approx(exact, abs=CLOSE)


def test_features_are_compared_beside_a_head(tiny_variant):
  model = make_model(tiny_variant, depth=2)
  options = {
    'target': 'features', 'criterion': 'output', 'inputs': INPUTS,
    'resamples': 0,
  }  # fmt: skip
  found, bare = (
    lv.nose(each, [IMAGES], 1, **options).rounds[0].scores
    for each in (model, backbone(model))
  )
  assert found == bare


def test_a_head_of_one_class_is_not_compared(tiny_variant):
  """Its softmax is 1 whatever the logit, so that no layer would matter."""
  variant = dataclasses.replace(tiny_variant, num_classes=1)
  model = make_model(variant, depth=2)
  options = {'criterion': 'output', 'inputs': INPUTS, 'resamples': 0}
  found, bare = (
    lv.nose(each, [IMAGES], 1, **options).rounds[0].scores
    for each in (model, backbone(model))
  )
  assert found == bare
  assert min(found.values()) > 0


def test_trials_have_the_inputs_that_are_chosen(tiny_variant):
  model = make_model(tiny_variant, depth=2)
  options = {'criterion': 'output', 'inputs': 'auto', 'resamples': 0}
  found = lv.nose(model, [IMAGES], 1, **options)
  for block, score in found.rounds[0].scores.items():
    fitted = lv.linearize(model, [IMAGES[~SCORED]], (block,), inputs='auto')
    assert fitted.module.linear_inputs != ('token',)
    exact = divergence(model, fitted, IMAGES[SCORED])
    assert score == pytest.approx(exact, abs=CLOSE)


def test_no_scored_image_is_fitted_on(tiny_variant):
  model = make_model(tiny_variant)
  images = read_images(batches_of(IMAGES, 50), model)
  fitted, held = output_error.split(images)
  np.testing.assert_array_equal(np.concatenate(fitted.images), IMAGES[~SCORED])
  np.testing.assert_array_equal(np.concatenate(held.images), IMAGES[SCORED])
  with pytest.raises(DataError, match='cannot be split'):
    output_error.split(read_images([IMAGES[:3]], model))


def test_attention_that_a_map_expresses_costs_nothing(tiny_variant):
  """Without queries every token attends to all alike."""
  model = make_model(tiny_variant)
  params = jax.tree.map(np.array, model.params)
  fused = params['block01']['attn']['qkv']
  fused['kernel'][:, :24] = 0.0
  fused['bias'][:24] = 0.0
  model = model.replace(params=params)
  options = {'criterion': 'output', 'num_layers': 1, 'resamples': 0}
  found = lv.nose(model, [IMAGES], inputs=INPUTS, **options)
  assert found.removed == (1,)
  assert found.rounds[0].scores[1] < 1e-3
  token = lv.nose(model, [IMAGES], **options)
  assert token.rounds[0].scores[1] > 1e-2


def test_same_on_several_devices(tiny_variant):
  model = make_model(tiny_variant)
  options = {'criterion': 'output', 'num_layers': 2, 'resamples': 20}
  one, many = (
    lv.nose(model, [IMAGES], mesh=mesh_of(count), **options) for count in (1, 8)
  )
  assert one.order == many.order
  for mine, other in zip(one.rounds, many.rounds, strict=True):
    assert mine.scores == pytest.approx(other.scores, abs=CLOSE)


def test_what_it_does_not_do_is_one_line(tiny_variant):
  model = make_model(tiny_variant)
  with pytest.raises(UsageError, match='only exhaustive takes a score'):
    lv.nose(model, [IMAGES], criterion='exhaustive:output', num_layers=1)
  inputs = ('token', 'meen')
  with pytest.raises(ModelError, match="unknown input 'meen'"):
    lv.nose(model, [IMAGES], 1, criterion='output', inputs=inputs)
