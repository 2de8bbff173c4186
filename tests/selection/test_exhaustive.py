"""An exhaustive search finds the best of all sets."""

import itertools
import json

import pytest

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.selection.criteria import Scores
from lambda_vit_jax.selection.exhaustive import all_sets, exhaustive_search
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.options import Progress
from lambda_vit_jax.selection.record import Selection
from tests.support.search_models import labelled_batches, make_images

BATCHES = labelled_batches(make_images(130))


@pytest.mark.parametrize('score', ['transfer_entropy', 'loss_increase'])
def test_exhaustive_finds_the_optimum(model, score):
  found = nose(model, BATCHES, criterion=f'exhaustive:{score}', num_layers=2)
  assert set(found.set_scores) == set(itertools.combinations(range(4), 2))
  assert found.set_scores[found.removed] == min(found.set_scores.values())
  greedy = nose(model, BATCHES, criterion=score, num_layers=2)
  value = greedy.rounds[1].scores[greedy.order[1]]
  assert found.set_scores[greedy.removed] == pytest.approx(value, abs=1e-5)
  assert Selection.from_json(json.loads(json.dumps(found.to_json()))) == found


class Known:
  """A criterion with a given score per set."""

  def __init__(self, scores):
    self._scores = scores

  def score_sets(self, variants, on_images=None):
    on_images(3, 7)
    return Scores(
      {variant: self._scores[variant] for variant in variants},
      base_entropy=1.5,
      block_evaluations=9,
    )


@pytest.mark.parametrize(
  'sign, best', [('signed', (0, 1)), ('absolute', (0, 4))], ids=str
)
def test_the_sign_and_ties(sign, best):
  scores = {(0, 1): -5.0, (0, 4): 0.5, (1, 4): -0.5}
  start = Selection('exhaustive', 'logits', sign, 7, None)
  seen = []
  found = exhaustive_search(
    Known(scores), start, (4, 0, 1), 2, on_progress=seen.append
  )
  assert found.order == found.removed == best
  assert found.set_scores == scores
  assert (found.base_entropy, found.block_evaluations) == (1.5, 9)
  # One round, the first, of three candidates.
  assert seen == [Progress(0, 2, 3, 3, 7)]


def test_too_many_sets_are_refused():
  assert len(all_sets(range(12), 5)) == 792
  with pytest.raises(UsageError, match='142506 sets, more than 2000'):
    all_sets(range(30), 5)
