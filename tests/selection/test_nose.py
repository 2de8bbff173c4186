"""NOSE and the other criteria: laws of the search, budgets, certainty."""

import dataclasses
import itertools
import json
import warnings

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.core.errors import CheckpointError, DataError, UsageError
from lambda_vit_jax.core.errors import ModelError as LayerError
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection import bootstrap, criteria
from lambda_vit_jax.selection.budget import resolve_num_layers
from lambda_vit_jax.selection.nose import choose, nose, nose_order, select
from lambda_vit_jax.selection.plain_loop import plain_loop
from lambda_vit_jax.selection.record import Selection
from tests.support.search_models import batches_of, make_images, make_model

SHAPE = (8, 8, 1)
IMAGES = make_images(130)
LABELS = np.random.default_rng(1).integers(0, 10, 130)

# The bound on a difference between two ways to the same value.
NATS_PER_CHANNEL = 1e-5


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant, depth=4)


def _labelled():
  return [
    {'image': IMAGES[i : i + 50], 'label': LABELS[i : i + 50]}
    for i in (0, 50, 100)
  ]


# The search itself, on scores without a network.


def _additive(values):
  return lambda removed, left: {i: values[i] + 0 * len(removed) for i in left}


@hypothesis.given(
  st.lists(st.integers(-50, 50), min_size=2, max_size=12), st.data()
)
def test_a_score_by_layer_gives_its_smallest(values, data):
  number = data.draw(st.integers(0, len(values) - 1))
  found = nose_order(_additive(values), len(values), number)
  # A stable sort: the lowest index on a tie.
  expected = sorted(range(len(values)), key=values.__getitem__)[:number]
  assert list(found) == expected
  found = nose_order(_additive(values), len(values), number, 'absolute')
  expected = sorted(range(len(values)), key=lambda i: abs(values[i]))[:number]
  assert list(found) == expected


def test_a_known_set_is_found_and_greed_looks_one_layer_ahead():
  known = {1, 4, 6}

  def overlap(removed, left):
    return {i: -len(known & {*removed, i}) for i in left}

  assert nose_order(overlap, 8, 3) == (1, 4, 6)
  assert nose_order(overlap, 8, 3, order=(6,)) == (6, 1, 4)
  assert nose_order(overlap, 8, 1, candidates=(0, 6)) == (6,)


def test_signed_and_absolute_differ():
  assert choose({0: -41.0, 1: 0.5, 2: 3.0}) == 0
  assert choose({0: -41.0, 1: 0.5, 2: 3.0}, 'absolute') == 1


# On networks.


def _reference(model, images, number, sign='signed'):
  """Greedy search in float64 numpy on targets of full forwards."""
  images = read_images([images], model)

  def entropies(variants):
    found = plain_loop(
      model, images, variants, micro_batch=130, one_program=True
    )
    return {
      variant: entropy.gaussian_entropy(moments.pooled().std)
      for variant, moments in found.items()
    }

  dense = entropies([()])[()]
  removed, rounds = (), []
  for _ in range(number):
    left = [i for i in range(model.depth) if i not in removed]
    trials = {tuple(sorted((*removed, i))): i for i in left}
    rounds.append(
      {
        trials[variant]: dense - value
        for variant, value in entropies(list(trials)).items()
      }
    )
    removed = (*removed, choose(rounds[-1], sign))
  return removed, rounds


def _assert_same_search(model, found, number, images=IMAGES):
  order, rounds = _reference(model, images, number)
  bound = NATS_PER_CHANNEL * model.num_classes
  for mine, exact in zip(found.rounds, rounds, strict=True):
    assert mine.scores.keys() == exact.keys()
    for block, value in exact.items():
      assert abs(mine.scores[block] - value) <= bound
    best, second = sorted(exact.values())[:2]
    if second - best <= 2 * bound:
      return  # From here on two right answers are possible.
  assert found.order == order


def test_nose_is_the_plain_search(model):
  found = nose(model, batches_of(IMAGES, 50), num_layers=2)
  _assert_same_search(model, found, 2)
  assert found.removed == tuple(sorted(found.order))
  assert found.num_samples == 130
  assert found.rounds[0].transfer_entropy is found.rounds[0].scores
  logits = np.asarray(model(IMAGES), np.float64)
  expected = entropy.gaussian_entropy(logits.std(axis=0))
  assert found.base_entropy == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(5))
def test_nose_is_the_plain_search_at_depth_12(tiny_variant, seed):
  model = make_model(tiny_variant, depth=12, seed=seed)
  found = nose(model, [IMAGES], num_layers=5)
  _assert_same_search(model, found, 5)
  assert (
    found.block_evaluations
    <= sum(left * (left + 3) / 2 for left in (12, 11, 10, 9, 8))
    + sum(range(5)) * 12
  )


@pytest.mark.slow
def test_nose_is_the_plain_search_on_a_trained_network():
  from lambda_vit_jax.checkpoints import load

  model = load.load_pretrained('builtin:vit_mini_patch2_8_digits')
  from sklearn import datasets

  digits = datasets.load_digits().images[:256, ..., None] / 16.0
  images = ((digits - 0.5) / 0.5).astype(np.float32)
  found = nose(model, [images], num_layers=5)
  _assert_same_search(model, found, 5, images)


def test_an_interrupted_search_goes_on_where_it_was(model):
  states = []
  options = {'num_layers': 3, 'resamples': 50}
  whole = select(model, [IMAGES], on_round=states.append, **options)
  assert [state.order for state in states] == [
    whole.order[:number] for number in (1, 2, 3)
  ]
  read = Selection.from_json(json.loads(json.dumps(states[0].to_json())))
  assert read == states[0]
  resumed = select(model, [IMAGES], resume=read, **options)
  assert resumed.order == whole.order
  assert resumed.agreement == whole.agreement
  for mine, other in zip(resumed.rounds, whole.rounds, strict=True):
    assert mine.scores == pytest.approx(other.scores, abs=1e-9)
  # A finished search is not run again, and another one is refused.
  assert select(model, [IMAGES], resume=whole, **options) is whole
  with pytest.raises(UsageError, match="had target='logits', this one has"):
    select(model, [IMAGES], resume=read, target='features', **options)
  with pytest.raises(UsageError, match='chose 3 layers already'):
    select(model, [IMAGES], resume=whole, num_layers=2, resamples=50)


def test_progress_counts_candidates_down(model):
  seen = []
  select(model, [IMAGES], num_layers=2, on_progress=seen.append)
  last = [state for state in seen if state.images_done == 130]
  assert [(s.round_index, s.candidates) for s in last] == [(0, 4), (1, 3)]
  assert {(s.num_rounds, s.images) for s in seen} == {(2, 130)}


def test_layers_that_are_gone_are_no_candidates(model):
  pruned = prune(model, (0,))
  found = nose(pruned, [IMAGES], num_layers=2)
  assert 0 not in found.rounds[0].scores
  assert set(found.removed) < {1, 2, 3}


def test_loss_increase_is_that_of_full_forwards(model):
  found = select(model, _labelled(), criterion='loss_increase', num_layers=1)

  images = read_images(_labelled(), model)
  variants = ((), (0,), (1,), (2,), (3,))
  exact = {
    variant: moments.pooled().mean[0]
    for variant, moments in plain_loop(
      model, images, variants, 'loss', micro_batch=130, one_program=True
    ).items()
  }
  for block, value in found.rounds[0].scores.items():
    assert value == pytest.approx(exact[block,] - exact[()], abs=1e-5)
  assert found.base_entropy is None


@pytest.mark.parametrize(
  'score', ['transfer_entropy', 'loss_increase'], ids=str
)
def test_exhaustive_finds_the_optimum(model, score):
  found = select(
    model, _labelled(), criterion=f'exhaustive:{score}', num_layers=2
  )
  assert set(found.set_scores) == set(itertools.combinations(range(4), 2))
  assert found.set_scores[found.removed] == min(found.set_scores.values())
  greedy = select(model, _labelled(), criterion=score, num_layers=2)
  value = greedy.rounds[1].scores[greedy.order[1]]
  assert found.set_scores[greedy.removed] == pytest.approx(value, abs=1e-5)
  assert Selection.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_criteria_that_look_at_no_image(model):
  assert select(model, None, criterion='first', num_layers=2).order == (0, 1)
  assert select(model, None, criterion='last', num_layers=2).order == (3, 2)
  given = select(model, None, criterion='given', layers=(3, 0), num_layers=1)
  assert given.order == (3, 0)
  assert given.num_samples == 0
  draws = {
    select(model, None, criterion='random', num_layers=2, seed=seed).removed
    for seed in range(20)
  }
  assert len(draws) > 3
  again = select(model, None, criterion='random', num_layers=2, seed=3)
  assert (
    again.order
    == select(model, None, criterion='random', num_layers=2, seed=3).order
  )


def _with_branch(model, block, change):
  params = jax.tree.map(np.array, model.params)
  change(params[f'block{block:02d}']['attn'])
  return model.replace(params=params)


def _silent(attention):
  attention['proj']['kernel'][:] = 0.0
  attention['proj']['bias'][:] *= 1e-3


def test_cosine_takes_the_attention_that_changes_least(model):
  quiet = _with_branch(model, 2, _silent)
  found = select(quiet, [IMAGES], criterion='cosine', num_layers=1)
  assert found.order == (2,)
  assert abs(found.rounds[0].scores[2]) < 1e-4


def test_affine_is_what_least_squares_leave(model):
  found = select(model, [IMAGES], criterion='affine', num_layers=1)
  _, taps = model.apply(IMAGES)
  for block, value in found.rounds[0].scores.items():
    named = taps[f'block{block:02d}']
    inputs, outputs = (
      np.asarray(named[name], np.float64).reshape(-1, 24)
      for name in ('norm1', 'attention')
    )
    inputs = inputs - inputs.mean(axis=0)
    outputs = outputs - outputs.mean(axis=0)
    # The norm's output lies in a hyperplane: what float32 leaves across it is
    # noise, and no part of the fit.
    fit = inputs @ np.linalg.lstsq(inputs, outputs, rcond=1e-4)[0]
    share = ((outputs - fit) ** 2).sum() / (outputs**2).sum()
    # The ridge, and float32 products of 2,210 samples.
    assert value == pytest.approx(share, rel=1e-3)


def test_dead_channels_are_named_and_left_out(model):
  params = jax.tree.map(np.array, model.params)
  params['head']['kernel'][:, 7] = 0.0
  dead = model.replace(params=params)
  with pytest.warns(UserWarning, match=r'channels \[7\] of the logits'):
    found = nose(dead, [IMAGES], num_layers=2)
  assert found.rounds[0].dead_channels == (7,)
  assert all(np.isfinite(list(found.rounds[0].scores.values())))
  logits = np.asarray(dead(IMAGES), np.float64)
  expected = entropy.gaussian_entropy(logits.std(axis=0), np.arange(10) == 7)
  assert found.base_entropy == pytest.approx(expected, abs=1e-4)


# Budgets.


def test_budgets(tiny_variant):
  model = make_model(tiny_variant, depth=12)
  assert resolve_num_layers(model) == 5
  assert resolve_num_layers(model, removal_ratio=0.42) == 5
  assert resolve_num_layers(model, num_layers=11) == 11
  pruned = prune(model, (3, 4))
  assert resolve_num_layers(pruned, removal_ratio=0.42) == 3
  for number in (1, 4, 11):
    ratio = model.macs() / prune(model, range(number)).macs()
    assert resolve_num_layers(model, target_speedup=ratio) == number
    assert resolve_num_layers(model, target_speedup=ratio - 1e-6) == number
  for bad, words in (
    ({'num_layers': 12}, 'at most 11'),
    ({'num_layers': 13}, '13 layers to remove'),
    ({'num_layers': 2.5}, 'whole number'),
    ({'num_layers': -1}, 'whole number'),
    ({'removal_ratio': 0.99}, 'at most 11'),
    ({'removal_ratio': 1.5}, 'share'),
    ({'target_speedup': 9.0}, 'out of reach'),
    ({'target_speedup': 0.5}, 'at least 1'),
    ({'num_layers': 2, 'removal_ratio': 0.5}, 'more than one budget'),
  ):
    with pytest.raises(UsageError, match=words):
      resolve_num_layers(model, **bad)


# Certainty.


def test_resampled_statistics_are_those_of_repeated_samples(rng):
  samples = rng.normal(size=(4, 6, 3)) + 100.0
  moments = HostMoments(
    np.full(4, 6.0), samples.mean(axis=1), samples.var(axis=1) * 6
  )
  weights = np.asarray([[1, 1, 1, 1], [0, 3, 1, 0]])
  mean, std = bootstrap.resampled_statistics(moments, weights)
  drawn = np.concatenate([samples[1], samples[1], samples[1], samples[2]])
  np.testing.assert_allclose(mean[1], drawn.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(std[1], drawn.std(axis=0), rtol=1e-9)
  np.testing.assert_allclose(
    std[0], samples.reshape(-1, 3).std(axis=0), rtol=1e-9
  )


def test_candidates_that_cannot_be_told_apart_are_named(rng):
  resampled = {
    0: rng.normal(0.0, 1.0, 500),
    1: rng.normal(0.5, 1.0, 500),
    2: rng.normal(50.0, 1.0, 500),
  }
  scores = {0: 0.0, 1: 0.5, 2: 50.0}
  sure = bootstrap.certainty(scores, resampled, 0, num_images=100)
  assert sure.indistinguishable == (1,)
  assert 0.5 < sure.same_choice.mean() < 0.8
  low, high = sure.intervals[2]
  assert low == pytest.approx(48.0, abs=0.2)
  assert high == pytest.approx(52.0, abs=0.2)
  # A distance of 0.5 with a deviation of √2: 100·(1.96·√2/0.5)² images.
  assert sure.suggested_images == pytest.approx(3073, rel=0.2)


def test_a_search_says_how_sure_it_is(model):
  found = nose(model, [IMAGES], num_layers=2)
  assert 0.0 < found.agreement <= 1.0
  for row in found.rounds:
    for block, (low, high) in row.intervals.items():
      assert low <= row.scores[block] <= high
    assert row.chosen not in row.indistinguishable
  without = nose(model, [IMAGES], num_layers=2, resamples=0)
  assert without.agreement is None
  assert without.order == found.order


# What goes wrong, and what is shown.


def test_few_images(model):
  with pytest.warns(UserWarning, match='only 127 images'):
    nose(model, [IMAGES[:127]], num_layers=1)
  with pytest.raises(DataError, match='1 image cannot show a deviation'):
    nose(model, [IMAGES[:1]], num_layers=1)
  with pytest.raises(DataError, match='selection slice is empty'):
    nose(model, [], num_layers=1)
  said = []
  with warnings.catch_warnings(action='error'):
    nose(model, [IMAGES[:100]], num_layers=1, warn=said.append)
  assert len(said) == 1


def test_bad_options(model):
  for options, words in (
    ({'criterion': 'entrpy'}, 'not known'),
    ({'criterion': 'cosin'}, 'did you mean cosine'),
    ({'criterion': 'cosine:loss_increase'}, 'only exhaustive takes a score'),
    ({'criterion': 'exhaustive:cosine'}, 'only exhaustive takes a score'),
    ({'target': 'tokens'}, 'logits or features'),
    ({'sign': 'plus'}, 'signed or absolute'),
    ({'criterion': 'given'}, 'needs select.layers'),
    ({'num_layers': 4}, 'at most 3'),
  ):
    with pytest.raises(UsageError, match=words):
      select(model, [IMAGES], **({'num_layers': 1} | options))
  for layers in ((0, 0), (4,), (0, 1, 2, 3)):
    with pytest.raises(LayerError):
      select(model, None, criterion='given', layers=layers)
  pruned = prune(model, (1,))
  with pytest.raises(UsageError, match=r'blocks \[1\] have no attention'):
    select(pruned, None, criterion='given', layers=(1,))
  with pytest.raises(DataError, match='needs a label'):
    select(model, [IMAGES], criterion='loss_increase', num_layers=1)
  with pytest.raises(UsageError, match='more than 2000'):
    criteria.all_sets(range(30), 5)
  with pytest.raises(CheckpointError, match='not a selection'):
    Selection.from_json({'criterion': 'given'})


def test_it_shows_itself(model):
  found = select(model, [IMAGES], criterion='last', num_layers=2)
  assert 'removed [2, 3]' in found._repr_html_()
  assert found.__rich__().row_count == 2
  axes = found.plot().axes[0]
  assert axes.get_xlabel() == 'block'
  json_fields = found.to_json()
  assert {
    'criterion',
    'target',
    'sign',
    'num_samples',
    'base_entropy',
    'order',
    'removed',
    'rounds',
  } <= set(json_fields)
  assert {'scores', 'chosen', 'seconds'} <= set(json_fields['rounds'][0])
  assert set(json_fields['rounds'][0]['scores']) == {'0', '1', '2', '3'}
  assert dataclasses.replace(found, rounds=()).plot() is not None
