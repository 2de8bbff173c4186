"""NOSE is the greedy search over transfer entropy, resumed or not."""

import dataclasses
import inspect
import json

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import lambda_vit_jax as lv
from benchmarks.plain_loop import plain_loop
from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection.criteria import Scores, choose
from lambda_vit_jax.selection.nose import greedy_search, nose, select
from lambda_vit_jax.selection.options import SearchOptions
from lambda_vit_jax.selection.record import Selection
from tests.support.search_models import batches_of, make_images, make_model

IMAGES = make_images(130)

# Bound on the difference between two ways to compute the same value.
NATS_PER_CHANNEL = 1e-5


# The greedy search, on scores without a network.


def search(scores, candidates, number, sign='signed', order=(), **listeners):
  """`greedy_search` by a plain function of removed and remaining layers."""
  start = Selection(
    'transfer_entropy',
    'logits',
    sign,
    num_samples=100,
    base_entropy=None,
    order=tuple(order),
    removed=tuple(sorted(order)),
  )

  def criterion(removed, remaining, on_images=None):
    found = scores(removed, remaining)
    return found if isinstance(found, Scores) else Scores(found)

  return greedy_search(criterion, start, candidates, number, **listeners)


def additive(values):
  return lambda removed, remaining: {i: values[i] for i in remaining}


@hypothesis.given(
  st.lists(st.integers(-50, 50), min_size=2, max_size=12),
  st.data(),
  st.sampled_from(('signed', 'absolute')),
)
def test_independent_scores_are_taken_in_ascending_order(values, data, sign):
  depth = len(values)
  number = data.draw(st.integers(0, depth - 1))
  found = search(additive(values), range(depth), number, sign)
  size = abs if sign == 'absolute' else float
  # A stable sort: the lowest index on a tie.
  expected = sorted(range(depth), key=lambda i: size(values[i]))[:number]
  assert list(found.order) == expected
  assert found.removed == tuple(sorted(expected))


KNOWN = {1, 4, 6}


def overlap(removed, remaining):
  return {i: -len(KNOWN & {*removed, i}) for i in remaining}


@pytest.mark.parametrize(
  'options, expected',
  [
    ({'candidates': range(8), 'number': 3}, (1, 4, 6)),
    ({'candidates': range(8), 'number': 3, 'order': (6,)}, (6, 1, 4)),
    ({'candidates': (6, 0), 'number': 1}, (6,)),
    ({'candidates': (6, 0), 'number': 0}, ()),
  ],
  ids=('known set', 'resumed', 'candidates', 'nothing'),
)
def test_a_known_set_is_found(options, expected):
  assert search(overlap, **options).order == expected


def test_scores_are_of_the_layers_removed_so_far():
  asked = []

  def scores(removed, remaining):
    asked.append((removed, remaining))
    return {i: i + 10 * len(removed) for i in remaining}

  found = search(scores, (3, 1, 2), 3)
  assert asked == [((), (1, 2, 3)), ((1,), (2, 3)), ((1, 2), (3,))]
  assert [row.scores for row in found.rounds] == [
    {1: 1, 2: 2, 3: 3},
    {2: 12, 3: 13},
    {3: 23},
  ]
  assert [row.chosen for row in found.rounds] == [1, 2, 3]


def test_what_rounds_add_up_to():
  """The base entropy is the first round's; evaluations are summed."""
  base = iter((7.0, None, 9.0))
  saved = []
  found = search(
    lambda removed, remaining: Scores(
      {i: float(i) for i in remaining},
      base_entropy=next(base),
      block_evaluations=10 + len(removed),
    ),
    range(4),
    3,
    on_round=saved.append,
  )
  assert found.base_entropy == 7.0
  assert found.block_evaluations == 10 + 11 + 12
  assert [state.order for state in saved] == [(0,), (0, 1), (0, 1, 2)]
  assert saved[-1] is found


def test_the_sign_decides_what_the_bootstrap_compares():
  """Resamples around the scores −5, 1 and 4: the chosen one is not the first."""
  resampled = {
    0: np.full(100, -5.0),
    1: np.linspace(-0.9, 2.9, 100),
    2: np.full(100, 4.0),
  }
  rows = {
    sign: search(
      lambda *_: Scores({0: -5.0, 1: 1.0, 2: 4.0}, resampled, shards=32),
      range(3),
      1,
      sign,
    ).rounds[0]
    for sign in ('signed', 'absolute')
  }
  assert {sign: row.chosen for sign, row in rows.items()} == {
    'signed': 0,
    'absolute': 1,
  }
  for row in rows.values():
    # Every resample chooses alike: 100 bits, padded to 13 bytes.
    assert row.agreeing == 'ff' * 12 + 'f0'
    assert row.indistinguishable == ()


@pytest.mark.parametrize(
  'sign, chosen', [('signed', 0), ('absolute', 1)], ids=str
)
def test_signed_and_absolute_differ(sign, chosen):
  assert choose({0: -41.0, 1: 0.5, 2: 3.0}, sign) == chosen


def test_dead_channels_are_reported_once_for_each_set():
  dead = iter(((), (3,), (3,), (3, 5)))
  said = []
  search(
    lambda removed, remaining: Scores(
      dict.fromkeys(remaining, 0.0), dead_channels=next(dead)
    ),
    range(5),
    4,
    warn=said.append,
  )
  assert [line.split(' of ')[0] for line in said] == [
    'channels [3]',
    'channels [3, 5]',
  ]


# On networks.


def plain_search(model, images, number, sign):
  """Greedy search in float64 numpy on the targets of full forwards."""
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


def assert_same_search(model, found, number, images=IMAGES, sign='signed'):
  order, rounds = plain_search(model, images, number, sign)
  bound = NATS_PER_CHANNEL * model.num_classes
  size = abs if sign == 'absolute' else float
  for mine, exact in zip(found.rounds, rounds, strict=True):
    assert mine.scores.keys() == exact.keys()
    for block, value in exact.items():
      assert abs(mine.scores[block] - value) <= bound
    best, second = sorted(map(size, exact.values()))[:2]
    if second - best <= 2 * bound:
      return  # From here on two orders are correct.
  assert found.order == order


def test_nose_is_the_plain_search(model):
  found = nose(model, batches_of(IMAGES, 50), num_layers=2)
  assert_same_search(model, found, 2)
  assert found.removed == tuple(sorted(found.order))
  assert found.num_samples == 130
  assert found.rounds[0].transfer_entropy is found.rounds[0].scores
  logits = np.asarray(model(IMAGES), np.float64)
  expected = entropy.gaussian_entropy(logits.std(axis=0))
  assert found.base_entropy == pytest.approx(expected, abs=1e-4)


def test_absolute_nose_is_the_plain_absolute_search(model):
  found = nose(model, [IMAGES], num_layers=2, sign='absolute')
  assert_same_search(model, found, 2, sign='absolute')
  # Two of its four layers score below zero.
  assert found.order != nose(model, [IMAGES], num_layers=2).order
  assert found.sign == 'absolute'


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(5))
def test_nose_is_the_plain_search_at_depth_12(tiny_variant, seed):
  model = make_model(tiny_variant, depth=12, seed=seed)
  found = nose(model, [IMAGES], num_layers=5)
  assert_same_search(model, found, 5)
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
  assert_same_search(model, found, 5, images)


RESUMABLE = SearchOptions(num_layers=3, resamples=50)


def test_an_interrupted_search_resumes(model):
  states = []
  whole = select(model, [IMAGES], RESUMABLE, on_round=states.append)
  assert [state.order for state in states] == [
    whole.order[:number] for number in (1, 2, 3)
  ]
  read = Selection.from_json(json.loads(json.dumps(states[0].to_json())))
  assert read == states[0]
  resumed = select(model, [IMAGES], RESUMABLE, resume=read)
  assert resumed.order == whole.order
  assert resumed.agreement == whole.agreement
  assert resumed.base_entropy == whole.base_entropy
  for mine, other in zip(resumed.rounds, whole.rounds, strict=True):
    assert mine.scores == pytest.approx(other.scores, abs=1e-9)
  # A finished search is not run again.
  assert select(model, [IMAGES], RESUMABLE, resume=whole) is whole


@pytest.mark.parametrize(
  'options, words',
  [
    ({'target': 'features'}, "had target='logits', this one has 'features'"),
    ({'sign': 'absolute'}, "had sign='signed', this one has 'absolute'"),
    ({'resamples': 51}, 'had resamples=50, this one has 51'),
    ({'seed': 9}, 'had seed=0, this one has 9'),
    ({'num_layers': 1}, 'chose 2 layers already, more than 1'),
  ],
  ids=lambda value: next(iter(value), '') if isinstance(value, dict) else '',
)
def test_another_search_is_not_resumed(model, options, words):
  begun = Selection(
    'transfer_entropy',
    'logits',
    'signed',
    num_samples=130,
    base_entropy=0.0,
    order=(2, 0),
    removed=(0, 2),
    resamples=50,
    seed=0,
  )
  options = dataclasses.replace(RESUMABLE, **options)
  with pytest.raises(UsageError, match=words):
    select(model, [IMAGES], options, resume=begun)


def test_progress_counts_candidates_down(model):
  seen = []
  nose(model, [IMAGES], num_layers=2, on_progress=seen.append)
  last = [state for state in seen if state.images_done == 130]
  assert [(s.round_index, s.candidates) for s in last] == [(0, 4), (1, 3)]
  assert {(s.num_rounds, s.images) for s in seen} == {(2, 130)}


def test_removed_layers_are_no_candidates(model):
  pruned = prune(model, (0,))
  found = nose(pruned, [IMAGES], num_layers=2)
  assert 0 not in found.rounds[0].scores
  assert set(found.removed) < {1, 2, 3}


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


def test_a_search_reports_how_certain_it_is(model):
  found = nose(model, [IMAGES], num_layers=2)
  assert 0.0 < found.agreement <= 1.0
  for row in found.rounds:
    for block, (low, high) in row.intervals.items():
      assert low <= row.scores[block] <= high
    assert row.chosen not in row.indistinguishable
  without = nose(model, [IMAGES], num_layers=2, resamples=0)
  assert without.agreement is None
  assert without.order == found.order


def test_the_same_search_twice_is_the_same(model):
  first, second = (
    nose(model, batches_of(IMAGES, 50), num_layers=2) for _ in range(2)
  )
  for mine, other in zip(first.rounds, second.rounds, strict=True):
    assert dataclasses.replace(mine, seconds=0.0) == dataclasses.replace(
      other, seconds=0.0
    )


# Its signature.


def test_keywords_are_those_of_the_options():
  keywords = inspect.signature(nose).parameters
  for field in dataclasses.fields(SearchOptions):
    assert keywords[field.name].default == field.default


@pytest.mark.parametrize(
  'function, by_name', [(nose, 4), (select, 3), (greedy_search, 4)]
)
def test_all_but_the_first_are_given_by_name_alone(function, by_name):
  kinds = [
    each.kind for each in inspect.signature(function).parameters.values()
  ]
  either, keyword = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
  )
  assert kinds == [either] * by_name + [keyword] * (len(kinds) - by_name)


# `create_model` passes fields of the module on.
FUNCTIONS = sorted(set(lv.__all__) - {'__version__', 'create_model'})


@pytest.mark.parametrize('name', FUNCTIONS)
def test_public_functions_spell_their_keywords(name):
  parameters = inspect.signature(getattr(lv, name)).parameters.values()
  assert inspect.Parameter.VAR_KEYWORD not in {p.kind for p in parameters}
