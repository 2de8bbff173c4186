"""The run of consecutive blocks with the smallest angle is chosen."""

import itertools

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import block_spans
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)
from tests.support.small_models import shade

IMAGES = make_images()


def by_numpy(model):
  """The mean angles between all streams, of one array with every image."""
  taps = model.apply(IMAGES)[1]
  streams = [taps['embedding']]
  streams += [taps[block_name(i)]['output'] for i in range(model.depth)]
  streams = [np.asarray(x, np.float64) for x in streams]
  found = np.zeros((len(streams),) * 2)
  for i, j in itertools.combinations(range(len(streams)), 2):
    a, b = streams[i], streams[j]
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosine = np.clip((a * b).sum(axis=-1) / lengths, -1.0, 1.0)
    found[i, j] = np.arccos(cosine).mean() / np.pi
  return found


@pytest.mark.parametrize('devices', [1, 8])
def test_angles_are_those_of_gathered_streams(tiny_variant, devices):
  model = lv.prune(make_model(tiny_variant), (1,))
  images = read_images(batches_of(IMAGES, 20), model, mesh_of(devices))
  # Small enough for several micro-batches, the last of them padded.
  found = block_spans.angles(model, images, 0.002)
  # Float32 streams and their angles, averaged.
  np.testing.assert_allclose(found, by_numpy(model), atol=1e-6)


def test_blocks_that_do_nothing_are_found(tiny_variant):
  model = make_model(tiny_variant, depth=5)
  model = shade(shade(model, 2, 0.0), 3, 0.0)
  assert lv.choose_blocks(model, [IMAGES], 2) == (2, 3)
  assert lv.choose_blocks(model, [IMAGES], 0) == ()
  (one,) = lv.choose_blocks(model, [IMAGES], 1)
  assert one in (2, 3)
  # A decoder that reads one of them.
  span = lv.choose_blocks(model, [IMAGES], 2, needed=(3,))
  assert span in ((0, 1), (1, 2))


@pytest.mark.parametrize('number', range(1, 6))
def test_the_best_span_by_its_definition(tiny_variant, number):
  model = make_model(tiny_variant, depth=6)
  images = read_images([IMAGES], model)
  distances = block_spans.angles(model, images)
  (first, *rest) = lv.choose_blocks(model, [IMAGES], number)
  assert first == np.argmin(np.diagonal(distances, number))
  assert rest == list(range(first + 1, first + number))


def test_the_first_of_equal_spans_is_chosen(tiny_variant, monkeypatch):
  model = make_model(tiny_variant, depth=5)
  distances = np.full((6, 6), 0.5)
  # Spans of two blocks from 1, 2 and 3 on.
  distances[1, 3] = distances[2, 4] = distances[3, 5] = 0.25
  monkeypatch.setattr(block_spans, 'angles', lambda *_: distances)
  assert block_spans.choose_blocks(model, [make_images(2)], 2) == (1, 2)


def test_the_attention_that_a_selection_removes_does_not_count(tiny_variant):
  model = make_model(tiny_variant)
  selection = lv.Selection('given', 'logits', 'signed', 0, None, removed=(0, 1))
  found = lv.choose_blocks(model, [IMAGES], 1, removed=selection)
  assert found == lv.choose_blocks(model, [IMAGES], 1, removed=(0, 1))
  assert found != (2,)


def test_blocks_that_must_stay(tiny_variant):
  model = lv.prune(lv.prune(make_model(tiny_variant), (0,)), (2,), 'absent')
  # All that is left of attention is in block 1; block 0 doubles the stream.
  assert lv.choose_blocks(model, [IMAGES], 1) == (2,)
  with pytest.raises(ModelError, match='2 blocks cannot be dropped in a row'):
    lv.choose_blocks(model, [IMAGES], 2)
  # An attention layer that will be removed does not count as one that stays.
  dense = make_model(tiny_variant)
  found = block_spans.spans_of(dense, 1, removed=(0, 1))
  assert sorted(found) == [0, 1]
  assert sorted(block_spans.spans_of(dense, 1)) == [0, 1, 2]


@pytest.mark.parametrize('number', [3, -1])
def test_spans_that_do_not_exist(tiny_variant, number):
  model = make_model(tiny_variant)
  with pytest.raises(ModelError, match='cannot be dropped in a row from 3'):
    lv.choose_blocks(model, [], number)


@pytest.mark.parametrize('number', [1.5, '2', True])
def test_numbers_of_blocks_that_are_not_whole(tiny_variant, number):
  model = make_model(tiny_variant)
  with pytest.raises(UsageError, match='must be a whole number'):
    lv.choose_blocks(model, [], number)


def test_bad_input(tiny_variant):
  model = make_model(tiny_variant)
  with pytest.raises(DataError, match='image'):
    lv.choose_blocks(model, [], 1)
  broken = jax.tree.map(np.array, model.params)
  broken['block00']['mlp']['fc1']['bias'][:] = np.nan
  with pytest.raises(ModelError, match='block 0: activations are NaN'):
    lv.choose_blocks(model.replace(params=broken), [IMAGES], 1)
