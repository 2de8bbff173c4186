"""Linear trials equal fitting and running each candidate by itself."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.edits import quantize
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.selection import checks
from lambda_vit_jax.selection.criteria import choose
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.selection.trials import TrialRunner
from lambda_vit_jax.training_free import linear_maps
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

# Nats per channel: float32 activations that differ in the order of sums by 1e-6
# of their deviation, over a few layers.
NATS_PER_CHANNEL = 1e-5
CHANNELS = 10

IMAGES = make_images(130)
LABELS = np.random.default_rng(1).integers(0, CHANNELS, len(IMAGES))
LABELLED = [{'image': IMAGES, 'label': LABELS}]
OPTIONS = {'trial': 'linear', 'resamples': 0}


def with_maps(model, layers, dense=None):
  return linear_maps.linearize(
    model, [IMAGES], layers, inputs=model.module.linear_inputs, dense=dense
  )


def entropy_of(model, images=IMAGES):
  """Up to the constants, which cancel."""
  logits = np.asarray(model(images), np.float64)
  return np.log(logits.std(axis=0)).sum()


def loss_of(model):
  logits = np.asarray(model(IMAGES), np.float64)
  likely = logits[np.arange(len(IMAGES)), LABELS]
  return (np.log(np.exp(logits).sum(axis=1)) - likely).mean()


def plain_search(model, number, score):
  """One fit and one full forward per candidate."""
  removed, rounds = (), []
  for _ in range(number):
    current = with_maps(model, removed) if removed else model
    left = [
      index
      for index, mode in enumerate(current.attention_modes)
      if mode == 'full'
    ]
    rounds.append(
      {i: score(with_maps(current, (i,), dense=model)) for i in left}
    )
    removed = (*removed, choose(rounds[-1]))
  return removed, rounds


def assert_same_rounds(found, expected, bound):
  assert len(found) == len(expected)
  for mine, exact in zip(found, expected, strict=True):
    assert mine.keys() == exact.keys()
    for block, value in exact.items():
      assert abs(mine[block] - value) <= bound, (block, mine, exact)


# Every round compiles as many networks as it has candidates.
@pytest.mark.parametrize(
  'number, options',
  [
    (3, {}),
    pytest.param(
      2,
      {'layer_scale': 0.5, 'norm_eps': (1e-6, 1e-3, 1e-6, 1e-6, 1e-5)},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      2,
      {'linear_inputs': ('token', 'mean', 'class_map')},
      marks=pytest.mark.slow,
    ),
    (1, {'linear_inputs': ('token', 'neighbours', 'positions', 'mixing')}),
    (
      1,
      {
        'linear_inputs': ('token', 'mean'),
        'attention_modes': ('linear', 'full', 'full', 'identity'),
      },
    ),
  ],
  ids=['plain', 'layer_scale', 'mean', 'mixing', 'modes'],
)
def test_scores_are_those_of_fitting_one_by_one(tiny_variant, number, options):
  model = make_model(tiny_variant, depth=4, **options)
  dense = entropy_of(model)
  order, rounds = plain_search(
    model, number, lambda trial: dense - entropy_of(trial)
  )
  found = nose(model, batches_of(IMAGES, 50), num_layers=number, **OPTIONS)
  assert_same_rounds(
    [row.scores for row in found.rounds], rounds, NATS_PER_CHANNEL * CHANNELS
  )
  assert found.order == order
  assert found.trial == 'linear'
  skipped = nose(model, [IMAGES], num_layers=1, resamples=0)
  for block, score in skipped.rounds[0].scores.items():
    assert abs(found.rounds[0].scores[block] - score) > 1e-2


def test_scores_of_the_loss(tiny_variant):
  model = make_model(tiny_variant)
  dense = loss_of(model)
  order, rounds = plain_search(model, 2, lambda trial: loss_of(trial) - dense)
  found = nose(
    model, LABELLED, criterion='loss_increase', num_layers=2, **OPTIONS
  )
  # A mean of 130 losses of float32 logits.
  assert_same_rounds([row.scores for row in found.rounds], rounds, 1e-5)
  assert found.order == order


def affine_model(variant, **options):
  """Weights do not depend on the image: attention is affine in the mean."""
  model = make_model(variant, **options)
  params = jax.tree.map(np.array, model.params)
  for index in range(model.depth):
    qkv = params[block_name(index)]['attn']['qkv']
    # Queries are zero, so that all keys are alike.
    qkv['kernel'][:, : model.module.embed_dim] = 0.0
    qkv['bias'][: model.module.embed_dim] = 0.0
  return model.replace(params=params)


def test_attention_that_is_affine_costs_nothing(tiny_variant):
  model = affine_model(tiny_variant, linear_inputs=('token', 'mean'))
  found = nose(model, [IMAGES], num_layers=2, **OPTIONS)
  for row in found.rounds:
    for score in row.scores.values():
      # The least ridge is 1e-6 of the variance of the inputs.
      assert abs(score) <= 1e-3
  token_only = affine_model(tiny_variant)
  found = nose(token_only, [IMAGES], num_layers=1, **OPTIONS)
  assert min(map(abs, found.rounds[0].scores.values())) > 1e-2


@pytest.mark.parametrize('devices', [2, 8])
def test_same_on_any_number_of_devices(tiny_variant, devices):
  model = make_model(tiny_variant)
  one, many = (
    nose(model, [IMAGES], num_layers=2, mesh=mesh_of(count), **OPTIONS)
    for count in (1, devices)
  )
  assert one.order == many.order
  assert_same_rounds(
    [row.scores for row in many.rounds],
    [row.scores for row in one.rounds],
    NATS_PER_CHANNEL * CHANNELS,
  )


def test_goes_on_where_it_was_interrupted(tiny_variant):
  model = make_model(tiny_variant)
  options = OPTIONS | {'num_layers': 2, 'resamples': 50}
  states = []
  whole = nose(model, [IMAGES], on_round=states.append, **options)
  read = Selection.from_json(json.loads(json.dumps(states[0].to_json())))
  assert read == states[0]
  resumed = nose(model, [IMAGES], resume=read, **options)
  assert resumed.order == whole.order
  assert resumed.rounds[1].scores == pytest.approx(
    whole.rounds[1].scores, abs=NATS_PER_CHANNEL * CHANNELS
  )
  assert 0.0 <= whole.agreement <= 1.0
  with pytest.raises(UsageError, match="had trial='linear', this one"):
    nose(model, [IMAGES], resume=read, **(options | {'trial': 'skip'}))


def test_a_file_without_the_field_is_of_skip(tiny_variant):
  model = make_model(tiny_variant)
  found = nose(model, None, criterion='last', num_layers=2)
  fields = found.to_json()
  assert fields['trial'] == 'skip'
  del fields['trial']
  assert Selection.from_json(fields) == found
  assert 'linear trials' not in found.table().caption
  linear = dataclasses.replace(found, trial='linear')
  assert Selection.from_json(linear.to_json()) == linear
  assert 'linear trials' in linear.table().caption


@pytest.mark.parametrize('devices', [1, 8])
def test_seven_programs_serve_searches_of_any_length(
  tiny_variant, compilations, devices
):
  # A width of its own, so that no other test has compiled the programs.
  variant = dataclasses.replace(tiny_variant, embed_dim=14 + 6 * devices)
  model = make_model(variant, depth=4)
  images = read_images([IMAGES], model, mesh_of(devices))
  runner = TrialRunner(model, images)
  before = compilations()
  removed = ()
  for block in (3, 0, 1):
    left = [i for i in range(4) if i not in removed]
    maps, _ = linear_maps.fit_trials(model, images, removed, left)
    runner.use_maps(maps)
    runner.evaluate([(), *(tuple(sorted((*removed, i))) for i in left)])
    removed = tuple(sorted((*removed, block)))
  # Embedding; a block, and the end, each with attention and with a map; the two
  # halves of a block, and the sums of its fit.
  assert compilations() - before <= 7


def test_a_round_costs_no_more_blocks_than_it_must(tiny_variant):
  model = make_model(tiny_variant, depth=4)
  found = nose(model, [IMAGES], num_layers=1, **OPTIONS)
  # The fit runs every block once, whatever the number of candidates.
  assert found.block_evaluations == 4 + 4 * (4 + 3) / 2
  images = read_images([IMAGES], model)
  # Later every block but the last runs a second time, with its map.
  assert linear_maps.fit_trials(model, images, (0, 3), (1, 2))[1] == 4 + 1


@pytest.mark.parametrize(
  'criterion', ['cosine', 'first', 'exhaustive', 'exhaustive:loss_increase']
)
def test_criteria_without_linear_trials(tiny_variant, criterion):
  model = make_model(tiny_variant)
  with pytest.raises(UsageError, match='trial=linear needs') as caught:
    nose(model, [IMAGES], criterion=criterion, num_layers=1, trial='linear')
  assert '\n' not in str(caught.value)


def test_trials_are_checked_by_name(tiny_variant):
  model = make_model(tiny_variant)
  with pytest.raises(UsageError, match="trial='map' is not known; use skip"):
    nose(model, [IMAGES], num_layers=1, trial='map')
  with pytest.raises(UsageError, match='probe makes no such trials'):
    checks.check_names('logits', 'signed', 'linear', 'probe')
  checks.check_names('logits', 'signed', 'skip', 'probe')


def test_images_and_models_that_no_map_fits(tiny_variant):
  variant = dataclasses.replace(tiny_variant, patch_size=4)
  model = make_model(variant)
  with (
    pytest.warns(UserWarning, match='only 4 images'),
    pytest.raises(DataError, match='too few for an affine map'),
  ):
    nose(model, [IMAGES[:4]], num_layers=1, **OPTIONS)
  with pytest.raises(ModelError, match='quantised'):
    nose(quantize(model), [IMAGES], num_layers=1, **OPTIONS)


def test_the_block_with_nan_is_named(tiny_variant):
  model = make_model(tiny_variant)
  params = jax.tree.map(np.array, model.params)
  params['block02']['mlp']['fc1']['kernel'][0, 0] = np.nan
  bad = model.replace(params=params)
  with pytest.raises(ModelError, match='block 2: activations are NaN'):
    nose(bad, [IMAGES], num_layers=1, **OPTIONS)
  images = read_images([IMAGES], model)
  runner = TrialRunner(model, images)
  maps, _ = linear_maps.fit_trials(model, images, (), (0, 1, 2))
  maps[1]['linear']['bias'] = np.full(24, np.nan, np.float32)
  runner.use_maps(maps)
  with pytest.raises(ModelError, match=r'block 1: .* of \[1\] replaced'):
    runner.evaluate([(), (0,), (1,)])
