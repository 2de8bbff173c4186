"""Merged tokens as parts: what is scored, what is fitted, what stays."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.compression import costs, parts, scores, steps
from lambda_vit_jax.compression.options import CompressOptions
from lambda_vit_jax.compression.parts import Part
from lambda_vit_jax.compression.search import Search
from lambda_vit_jax.core.errors import ModelError, UsageError
from tests.support.search_models import make_images, make_model, mesh_of

IMAGES = make_images(64)
HELD = IMAGES[3::4]


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant, depth=3)


def compress(model, speedup, **options):
  options = {'parts': ['neurons', 'tokens']} | options
  return lv.compress(
    model, [IMAGES], target_speedup=speedup, warn=str, **options
  )


def error_of(dense, model):
  rows = (np.asarray(m(HELD), np.float64) for m in (dense, model))
  return scores.divergence(*rows)


def leaves_equal(one, other):
  return all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


def test_tokens_alone_are_merging_and_no_more(model):
  found = compress(model, 1.15, parts=['tokens'])
  merged = [step.merged for step in found.left()]
  assert found.model.module == lv.merge_tokens(model, merged).module
  assert leaves_equal(found.model.params, model.params)
  assert found.steps[-1].macs == found.model.macs(executed=True)
  # The same network by other programs.
  expected = error_of(model, found.model)
  assert found.steps[-1].error == pytest.approx(expected, rel=1e-3)
  # A search that always took the first block would pass without this.
  assert sum(merged) > 0
  assert len({step.block for step in found.steps}) > 1


def test_the_largest_speedup_is_that_of_the_tokens_of_all_blocks(tiny_variant):
  """With a single attention layer left, only its block would merge any."""
  # Every token is read to the end.
  model = make_model(tiny_variant, depth=4, pooling='avg', class_token=False)
  reach = {
    names: steps.largest(model, model, names, costs.macs)
    for names in (('tokens',), ('attention',), ('attention', 'tokens'))
  }
  # The attention of the last block is worth less than what its merging saves.
  assert reach['attention', 'tokens'] > reach['tokens',] > reach['attention',]
  best = reach['tokens',]
  with pytest.raises(UsageError, match=f'that may go it is {best:.3f}'):
    compress(model, best + 1e-3, parts=['tokens'])


def search_of(model):
  options = CompressOptions(parts=('neurons', 'tokens'), repair=True)
  images = read_images([IMAGES], model)
  return Search(model, model, images, options.checked(model), costs.macs)


def test_fits_do_not_see_the_merging(model):
  found = []
  for tokens in ([], [Part(0, 'tokens')]):
    search = search_of(model)
    for part in (Part(1, 'neurons'), *tokens, Part(2, 'neurons')):
      search.take(part, 0.0)
    found.append(search.model)
  plain, merged = found
  assert leaves_equal(plain.params, merged.params)
  assert parts.unmerged(merged).module == plain.module
  assert merged.module.merge_counts != plain.module.merge_counts


def test_scores_see_the_merging(model):
  search = search_of(model)
  search.take(Part(0, 'tokens'), 0.0)
  merged = search.model
  assert search.measured() == pytest.approx(error_of(model, merged), rel=1e-3)
  # Of a part that comes after it, from streams of fewer tokens.
  part = Part(2, 'neurons')
  score = search._measure(part)
  search.take(part, score)
  assert score == pytest.approx(error_of(model, search.model), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('pooling', ['token', 'avg'])
def test_errors_are_those_of_the_models(tiny_variant, pooling):
  dense = make_model(dataclasses.replace(tiny_variant, pooling=pooling))
  found = compress(
    dense, 1.5, parts=['attention', 'neurons', 'blocks', 'tokens']
  )
  kinds = {step.part for step in found.steps}
  assert 'tokens' in kinds
  assert kinds > {'tokens'}
  for step, smaller in zip(found.steps, found.models[1:], strict=True):
    expected = error_of(dense, smaller)
    assert step.error == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert step.macs == smaller.macs(executed=True)
    position = parts.position_of
    if step.block in smaller.block_origins:
      counts = smaller.module.merge_counts
      assert step.merged == counts[position(smaller, step.block)]


@pytest.mark.slow
def test_a_resumed_search_and_more_devices_end_alike(model):
  paths = []
  found = compress(model, 1.4, on_step=paths.append)
  assert {step.part for step in found.steps} == {'neurons', 'tokens'}
  text = json.dumps(paths[len(paths) // 2].to_json())
  begun = lv.Compression.from_json(json.loads(text))
  again = compress(model, 1.4, resume=begun)
  assert again.model.module == found.model.module
  assert leaves_equal(again.model.params, found.model.params)
  spread = compress(model, 1.4, mesh=mesh_of(4))
  assert [(s.block, s.part) for s in spread.steps] == [
    (s.block, s.part) for s in found.steps
  ]


@pytest.mark.slow
def test_a_polish_keeps_the_merging(model):
  found = compress(model, 1.3, finetune=2)
  assert any(found.model.module.merge)
  assert found.model.module == found.models[-1].module
  assert not leaves_equal(found.model.params, compress(model, 1.3).model.params)


@pytest.mark.slow
def test_times_know_how_many_tokens_a_block_has(model, monkeypatch):
  timed = {}

  def fake(calls, rounds):
    (name,) = calls
    timed[name] = calls[name]
    return {name: [1e-3 * (1 + ('token' not in name))] * rounds}

  monkeypatch.setattr(costs, 'time_in_turn', fake)
  cost = costs.BlockTimes(4)
  merged = lv.merge_tokens(model, [2, 0, 0])
  assert cost(merged) < cost(model)
  tokens = model.module.num_tokens
  (first,) = [call for name, call in timed.items() if 'merges 2' in name]
  assert first().shape == (4, tokens - 2, model.module.embed_dim)


def test_a_block_merges_at_most_half_of_its_patches(model):
  left, steps = model, 0
  while more := [
    part for part in parts.parts_left(left, ('tokens',)) if part.block == 0
  ]:
    left = parts.without(left, more[0])
    steps += 1
  patches = model.module.num_tokens - model.module.num_prefix_tokens
  assert left.module.merge_counts[0] == patches // 2
  assert steps == patches // 2 // max(patches // 32, 1)


def test_later_blocks_keep_what_they_merge(model):
  patches = model.module.num_tokens - model.module.num_prefix_tokens
  # Block 1 merges half of all patches: none may go before it.
  full = lv.merge_tokens(model, [0, patches // 2, 0])
  assert Part(0, 'tokens') not in parts.parts_left(full, ('tokens',))


@pytest.mark.parametrize('kind', ['attention', 'block'])
def test_merging_goes_with_its_attention(model, kind):
  merged = lv.merge_tokens(model, [2, 2, 2])
  left = parts.without(merged, Part(1, kind))
  counts = {'attention': (2, 0, 2), 'block': (2, 2)}[kind]
  assert left.module.merge == left.module.merge_counts == counts


def test_networks_that_cannot_merge_have_no_such_part(tiny_variant):
  rotary = make_model(dataclasses.replace(tiny_variant, rotary='eva02'))
  assert not parts.parts_left(rotary, ('tokens',))


def test_maps_that_need_the_grid_are_refused(model):
  with pytest.raises(ModelError, match='mixing need every patch in its place'):
    compress(model, 1.2, inputs=['token', 'mixing'])
