"""Selections of the package and of files."""

import json

import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.variants import VARIANTS
from lambda_vit_jax.selection.stored import STORED


@pytest.mark.parametrize('name', STORED)
def test_stored_selections_fit_their_variant(name):
  found = lv.load_selection(name)
  depth = VARIANTS[name].depth
  assert found.criterion == 'transfer_entropy'
  assert 0 < len(found.order) == len(found.rounds) < depth
  assert set(found.order) < set(range(depth))
  # Each round took the least score of those left.
  for row in found.rounds:
    assert row.chosen == min(row.scores, key=row.scores.get)


def test_fewer_layers_are_those_that_went_first(tmp_path):
  found = lv.load_selection(STORED[0])
  five = lv.load_selection(STORED[0], num_layers=5)
  assert five.order == found.order[:5]
  assert five.removed == tuple(sorted(five.order))
  assert five.rounds == found.rounds[:5]
  # Read again, as a run writes it.
  path = tmp_path / 'selection.json'
  path.write_text(json.dumps(five.to_json()))
  assert lv.load_selection(path) == lv.load_selection(tmp_path) == five


def test_a_search_without_rounds_has_all_its_layers(tmp_path):
  sets = lv.Selection(
    'exhaustive', 'logits', 'signed', 8, 0.0, (1, 3), (1, 3), set_scores={}
  )
  path = tmp_path / 'selection.json'
  path.write_text(json.dumps(sets.to_json()))
  assert lv.load_selection(path, num_layers=2) == sets
  with pytest.raises(CheckpointError, match='has 0 rounds'):
    lv.load_selection(path, num_layers=1)


def test_what_cannot_be_loaded_is_said(tmp_path):
  with pytest.raises(CheckpointError, match=f'did you mean {STORED[0]}'):
    lv.load_selection('vit_small_patch14_dino2')
  with pytest.raises(CheckpointError, match='rounds; give at most so many'):
    lv.load_selection(STORED[0], num_layers=11)
  with pytest.raises(CheckpointError, match='no such selection'):
    lv.load_selection(tmp_path)
