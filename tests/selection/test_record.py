"""A selection shows itself in a few lines, and is written and read as JSON."""

import dataclasses
import itertools
import json

import pytest

from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.tables import MOST_LINES
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.record import Round, Selection
from tests.support.search_models import make_images

IMAGES = make_images(130)
SETS = list(itertools.combinations(range(6), 3))


def greedy(number=2):
  """A finished greedy search over `number + 1` blocks."""
  found = Selection('transfer_entropy', 'logits', 'signed', 130, -3.5)
  for index in range(number):
    scores = {block: 0.25 * block for block in range(index, number + 1)}
    found = found.with_round(
      Round(scores, index, 1.25, {index: (-0.5, 0.125)}, (index + 1,))
    )
  return found


def of_sets(criterion, scores, removed, sign='signed'):
  return Selection(
    criterion,
    'logits',
    sign,
    64,
    None,
    order=removed,
    removed=removed,
    set_scores=scores,
  )


def exhaustive():
  """Scores from -10 up; the sets of least score are the last ones."""
  scores = {blocks: 9.0 - index for index, blocks in enumerate(SETS)}
  return of_sets('exhaustive', scores, SETS[-1])


def probe():
  """The set of least loss is not the one chosen, as its rung was shorter."""
  return of_sets('probe', {(0, 1): 0.5, (0, 2): 0.625, (1, 2): 0.75}, (0, 2))


def test_it_shows_itself(model):
  found = nose(model, [IMAGES], criterion='last', num_layers=2)
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


@pytest.mark.parametrize('criterion', ['last', 'exhaustive'])
def test_layers_that_were_gone_before_are_named(model, criterion):
  pruned = prune(model, (1,))
  found = nose(pruned, [IMAGES], criterion=criterion, num_layers=1)
  assert found.removed_before == (1,)
  assert found.all_removed == tuple(sorted((1, *found.removed)))
  assert len(found.removed) == 1
  assert 'gone before: [1]' in repr(found)
  assert found.to_json()['all_removed'] == list(found.all_removed)
  assert Selection.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_greedy_search_shows_its_rounds():
  lines = repr(greedy()).splitlines()
  assert lines[0] == 'transfer_entropy on logits: removed [0, 1]'
  assert lines[2].split() == ['1', '0', '0', '[-0.5,', '0.125]', '1', '1.2']
  assert lines[3].split()[:3] == ['2', '1', '0.25']
  assert lines[4:] == ['130 images']


def test_agreement_is_of_all_rounds():
  """Resamples that choose the same blocks in both: 2 of 5, not of 8 bits."""
  found = Selection(
    'transfer_entropy', 'logits', 'signed', 130, None, resamples=5
  )
  for chosen, bits in enumerate(('11010000', '01110000')):
    agreeing = f'{int(bits, 2):02x}'
    row = Round({0: 0.0, 1: 1.0}, chosen, 0.0, agreeing=agreeing)
    found = found.with_round(row)
  assert found.agreement == 2 / 5
  assert found.to_json()['agreement'] == 2 / 5
  assert '40% of 5 resamples choose alike' in repr(found)
  assert found.with_round(Round({0: 0.0}, 0, 0.0)).agreement is None


def test_accuracy_over_the_layers_goes_with_their_number():
  found = dataclasses.replace(greedy(), top1=(0.9, 0.8, 0.6))
  assert Selection.from_json(json.loads(json.dumps(found.to_json()))) == found
  assert found.first(1).top1 == (0.9, 0.8)
  # Of a network that the search goes on from, nothing is known.
  assert found.with_round(Round({2: 0.0}, 2, 0.0)).top1 == ()
  damaged = found.to_json() | {'top1': [0.9, 0.8]}
  with pytest.raises(CheckpointError, match='`top1` and `order` differ'):
    Selection.from_json(damaged)


def test_an_exhaustive_search_shows_its_best_sets():
  lines = repr(exhaustive()).splitlines()
  assert lines[0] == 'exhaustive on logits: removed [3, 4, 5]'
  rows = [line.split() for line in lines[2:-1]]
  assert rows == [
    [*map(str, SETS[-1 - rank]), str(rank - 10)] for rank in range(10)
  ]
  assert lines[-1] == '64 images; 10 of 20 sets'


def test_a_probe_shows_the_chosen_set_first():
  assert [row[0] for row in probe().table().rows] == ['0 2', '0 1', '1 2']


def test_sets_are_ranked_by_the_sign_of_the_search():
  scores = {(0,): -5.0, (1,): 1.0, (2,): -2.0}
  found = of_sets('exhaustive', scores, (1,), 'absolute')
  assert [row[0] for row in found.table().rows] == ['1', '2', '0']


@pytest.mark.parametrize(
  'found',
  [
    Selection('given', 'logits', 'signed', 0, None),
    greedy(40),
    exhaustive(),
    probe(),
  ],
  ids=('empty', 'long', 'exhaustive', 'probe'),
)
def test_every_search_has_a_short_repr(found):
  assert repr(found).startswith(f'{found.criterion} on logits: removed [')
  assert len(repr(found).splitlines()) <= MOST_LINES
  assert f'{found.num_samples} images' in repr(found)
  page = found._repr_html_()
  assert page.startswith('<table>')
  assert page.count('<tr>') == len(found.table().rows) + 1
  assert found.__rich__().row_count == len(found.table().rows)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'rounds': [{'chosen': 0}]}, '`rounds[0].scores` is missing'),
    ({'order': 3}, '`order` is 3, but must be a list'),
    ({'set_scores': {'0,x': 1.0}}, '`set_scores.0,x` is no key'),
    ({'order': [1, 1]}, '`order` holds 1 twice'),
    (
      {'rounds': [{'scores': {'1': 0.5}, 'chosen': 0, 'seconds': 1}]},
      '`rounds[0].scores` has no block 0',
    ),
    (
      {
        'rounds': [
          {'scores': {'0': 0.5}, 'chosen': 0, 'seconds': 1, 'agreeing': bits}
          for bits in ('ff', 'ffff')
        ]
      },
      '`agreeing` and `resamples` differ in length',
    ),
  ],
  ids=('round', 'order', 'sets', 'twice', 'chosen', 'agreeing'),
)
def test_a_broken_selection_is_refused(change, words):
  fields = json.loads(json.dumps(greedy().to_json())) | change
  with pytest.raises(CheckpointError) as caught:
    Selection.from_json(fields)
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('found', [greedy(), exhaustive(), probe()])
def test_json_has_lists_and_strings_alone(found):
  def check(value):
    if isinstance(value, dict):
      assert all(isinstance(key, str) for key in value)
      value = list(value.values())
    if isinstance(value, list):
      for inner in value:
        check(inner)
    else:
      assert value is None or isinstance(value, (str, int, float))

  fields = found.to_json()
  # Intervals are pairs, which JSON reads as lists.
  for row in fields['rounds']:
    row['intervals'] = {k: list(v) for k, v in row['intervals'].items()}
  check(fields)
  assert Selection.from_json(fields) == found
