"""Short dilutions of any set of layers, and successive halving over sets."""

import itertools
import json
import math
import types

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from configs import digits
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.selection import probe, short_dilution
from lambda_vit_jax.selection.options import SearchOptions
from lambda_vit_jax.selection.record import Selection

SETTINGS = digits.get_config().dilute.to_dict()
ONE_LAYER = probe.ProbeOptions(2, SearchOptions(num_layers=1))


@pytest.fixture(scope='module')
def model():
  return lv.create_model('vit_nano_patch2_8', seed=3)


def batches(count, seed, **more):
  rng = np.random.default_rng(seed)
  return [
    {
      'image': rng.normal(size=(8, 8, 8, 1)).astype(np.float32),
      'label': rng.integers(0, 10, 8).astype(np.int32),
      **more,
    }
    for _ in range(count)
  ]


@pytest.fixture(scope='module')
def test_batches():
  # The last two rows of a batch are padding.
  return batches(2, 1, mask=np.arange(8) < 6)


@pytest.fixture(scope='module')
def short(model, test_batches):
  return short_dilution.ShortDilution(
    model, SETTINGS, lambda: itertools.cycle(batches(3, 2)), test_batches
  )


def assert_same_score(found, expected):
  assert found['num_images'] == expected['num_images'] == 12
  assert found['top1'] == expected['top1']
  # Two float32 programs with differently ordered sums.
  assert found['loss'] == pytest.approx(expected['loss'], abs=1e-5)


def mesh_of(devices):
  grid = np.asarray(jax.devices()[:devices]).reshape(devices, 1)
  return jax.sharding.Mesh(grid, sharding.BATCH_AXES)


def evaluated(model, test_batches):
  return accuracy.evaluate_model(model, test_batches, mesh_of(1))


def test_score_is_that_of_the_pruned_model(model, short, test_batches):
  assert_same_score(
    short.score((0, 2)), evaluated(lv.prune(model, (0, 2)), test_batches)
  )


def test_without_compensation_it_is_that_of_skipping(model, test_batches):
  plain = short_dilution.ShortDilution(
    model, SETTINGS | {'compensation': False}, lambda: iter(()), test_batches
  )
  assert_same_score(
    plain.score((1,)),
    evaluated(lv.prune(model, (1,), mode='absent'), test_batches),
  )


def test_the_diluted_attention_has_no_effect_after_training(
  model, short, test_batches
):
  trained = short.train((0, 1), 8)
  assert_same_score(
    short.score((0, 1), trained),
    evaluated(lv.prune(model.replace(params=trained), (0, 1)), test_batches),
  )


@pytest.mark.parametrize('devices', [None, 2])
def test_every_set_and_length_is_one_compilation(model, test_batches, devices):
  short = short_dilution.ShortDilution(
    model,
    SETTINGS,
    lambda: itertools.cycle(batches(3, 2)),
    test_batches,
    None if devices is None else mesh_of(devices),
  )
  short.score((0,), short.train((0,), 4))
  short.score((1, 2), short.train((1, 2), 6))
  assert short._step.cache_size() == 1
  assert short._counts.cache_size() == 1


def test_training_lowers_the_loss_and_keeps_the_start(
  model, short, test_batches
):
  before = model.params['norm']['scale'].copy()
  seen = short_dilution.ShortDilution(
    model,
    SETTINGS,
    lambda: itertools.cycle(batches(1, 5)),
    batches(1, 5, mask=np.ones(8, bool)),
  )
  after = seen.score((0,), seen.train((0,), 60))
  assert after['loss'] < seen.score((0,))['loss']
  np.testing.assert_array_equal(model.params['norm']['scale'], before)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [None, 2])
def test_segmentation_models(model, devices):
  """The score is that of the stage, over the pixels that have a class."""
  pixels = lv.with_decoder(model, Decoder('linear'), 3)

  def with_maps(batch, seed):
    rng = np.random.default_rng(seed)
    # Some pixels have no class.
    maps = rng.integers(-1, 3, (8, 8, 8)).astype(np.int32)
    return batch | {'label': maps}

  held = [with_maps(b, 3) for b in batches(2, 1, mask=np.arange(8) < 6)]
  seen = [with_maps(b, 4) for b in batches(1, 2)]
  short = short_dilution.ShortDilution(
    pixels,
    SETTINGS,
    lambda: itertools.cycle(seen),
    held,
    None if devices is None else mesh_of(devices),
  )
  start = short.score((0, 2))
  pruned = lv.prune(pixels, (0, 2))
  mesh = mesh_of(1)
  expected = evaluate_masks.holdout_scores(
    pruned.module, sharding.replicate(pruned.params, mesh), held, mesh, None
  )
  assert start['num_images'] == 12
  for name, value in expected.items():
    # Two float32 programs with differently ordered sums.
    assert start[name] == pytest.approx(value, abs=1e-5)
  trained = short.train((0, 2), 30)
  on_seen = short_dilution.ShortDilution(
    pixels,
    SETTINGS,
    lambda: itertools.cycle(seen),
    [b | {'mask': np.ones(8, bool)} for b in seen],
  )
  after = on_seen.score((0, 2), jax.device_get(trained))
  assert after['loss'] < on_seen.score((0, 2))['loss']


# Each number of steps is compiled.
@hypothesis.given(st.sampled_from([2, 39, 500]), st.floats(1e-5, 1e-1))
@hypothesis.settings(max_examples=10, deadline=None)
def test_schedule_goes_from_one_to_zero(steps, peak):
  factor, rate = short_dilution.make_schedule(steps, peak)
  assert factor[0] == 1
  assert factor[-1] == 0
  assert np.all(np.diff(factor) <= 0)
  # Float32 rounding of the peak.
  assert rate.max() <= peak * (1 + 1e-6)


def test_schedule_of_one_step():
  with pytest.raises(UsageError, match='2 steps or more'):
    short_dilution.make_schedule(1, 0.1)


@hypothesis.given(
  st.sets(st.sets(st.integers(0, 11), min_size=3, max_size=3).map(tuple)),
  st.randoms(),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_halving_keeps_the_best(sets, random):
  hypothesis.assume(sets)
  worth = {tuple(sorted(layers)): random.random() for layers in sets}
  calls = []

  def loss(layers, steps):
    calls.append((layers, steps))
    return worth[layers]

  rungs = short_dilution.successive_halving([*sets, *sets], loss, 10)
  # With a loss that steps do not change, the best set always survives.
  assert rungs[-1].ranking[0] == min(worth, key=lambda s: (worth[s], s))
  assert len(set(calls)) == len(calls)
  sizes = [len(rung.scores) for rung in rungs]
  assert sizes[0] == len(worth)
  assert sizes[-1] <= 2
  assert all(b == -(-a // 2) for a, b in itertools.pairwise(sizes))
  assert [rung.steps for rung in rungs] == [
    10 * 2**index for index in range(len(rungs))
  ]


def test_halving_needs_a_set():
  with pytest.raises(UsageError, match='no candidate sets'):
    short_dilution.successive_halving([], lambda layers, steps: 0.0, 10)


def test_the_search_chooses_the_proposal_of_least_final_loss(model, short):
  held = batches(16, 7, mask=np.ones(8, bool))
  tried = {}
  found = probe.select_by_probe(
    model,
    held,
    short,
    ONE_LAYER,
    on_score=lambda layers, steps, loss: tried.update({(layers, steps): loss}),
  )
  sets = {layers for layers, _ in tried}
  assert sets == set(probe.proposals(model, held, ONE_LAYER.search).values())
  longest = max(steps for _, steps in tried)
  last = {
    layers: loss for (layers, steps), loss in tried.items() if steps == longest
  }
  assert found.removed == min(last, key=last.__getitem__)
  assert found.criterion == 'probe'
  assert set(found.set_scores) == sets

  def never(*_):
    raise AssertionError('a finished set was trained again')

  again = probe.select_by_probe(
    model, held, short, ONE_LAYER, done=tried, on_score=never
  )
  assert again == found


def test_no_layer_to_remove_needs_no_dilution(model, short):
  held = batches(16, 7, mask=np.ones(8, bool))
  none = probe.ProbeOptions(2, SearchOptions(num_layers=0))
  found = probe.select_by_probe(model, held, short, none)
  assert found.removed == ()
  assert Selection.from_json(found.to_json()) == found


@pytest.mark.parametrize('classes', [0, 10])
def test_each_proposal_is_a_search_of_its_own(classes, monkeypatch):
  """Without classes there is no loss, and no proposal is resampled."""
  seen = []

  def select(model, batches, options, **others):
    seen.append(options)
    return types.SimpleNamespace(removed=(len(seen),))

  monkeypatch.setattr(probe, 'select', select)
  headless = types.SimpleNamespace(num_classes=classes)
  # Of the caller's options, none that decides what a proposal is.
  options = SearchOptions(
    num_layers=1, target='features', sign='absolute', trial='linear'
  )
  found = probe.proposals(headless, [], options)
  wanted = [n for n in probe.PROPOSERS if classes or n != 'loss_increase']
  assert list(found) == wanted
  assert [options.resamples for options in seen] == [0] * len(wanted)
  for name, options in zip(wanted, seen, strict=True):
    own = {'target': 'logits', 'sign': 'signed', **probe.PROPOSERS[name]}
    assert (options.target, options.sign) == (own['target'], own['sign'])
    assert options.trial == 'skip'
  assert [options.criterion for options in seen] == [
    probe.PROPOSERS[name]['criterion'] for name in wanted
  ]


def test_the_last_rung_decides(model, short, monkeypatch):
  """Of five sets, one leads until the last rung, of four times the steps."""
  sets = [(0,), (1,), (2,), (0, 1), (1, 2)]
  monkeypatch.setattr(probe, 'proposals', lambda *others: dict(enumerate(sets)))
  monkeypatch.setattr(short, 'train', lambda layers, steps: steps)

  def score(layers, steps):
    late = layers == (1,) and steps >= 8
    return {'loss': -1.0 if late else float(sets.index(layers))}

  monkeypatch.setattr(short, 'score', score)
  found = probe.select_by_probe(model, [], short, ONE_LAYER)
  assert found.removed == (1,)


def test_a_dilution_that_diverges_ranks_last(model, short, monkeypatch):
  held = batches(16, 7, mask=np.ones(8, bool))
  sets = sorted(set(probe.proposals(model, held, ONE_LAYER.search).values()))
  losses = dict.fromkeys(sets, 1.0) | {sets[0]: math.nan}
  monkeypatch.setattr(short, 'train', lambda layers, steps: layers)
  monkeypatch.setattr(
    short, 'score', lambda layers, trained: {'loss': losses[layers]}
  )
  scores, messages = {}, []
  found = probe.select_by_probe(
    model,
    held,
    short,
    ONE_LAYER,
    on_score=lambda layers, steps, loss: scores.update({str(layers): loss}),
    warn=messages.append,
  )
  assert found.removed != sets[0]
  assert any('diverged' in line for line in messages)
  json.dumps(scores, allow_nan=False)
