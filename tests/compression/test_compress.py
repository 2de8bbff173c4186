"""The search over all parts: its path, its choices, and how it goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.compression import costs, parts, scores
from lambda_vit_jax.compression.parts import Part
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import paired
from tests.support.search_models import make_images, make_model, mesh_of

IMAGES = make_images(64)


def slow(*values):
  return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant, depth=3)


def compress(model, speedup=1.6, **options):
  return lv.compress(
    model, [IMAGES], target_speedup=speedup, warn=str, **options
  )


@pytest.fixture(scope='module')
def found(model):
  return compress(model)


def same(one, other):
  """Whether two models are the same network, to the bit."""
  assert one.module == other.module
  assert one.block_origins == other.block_origins
  assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
  return all(
    np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True
    )
  )


@pytest.mark.slow
def test_every_step_is_the_parent_of_the_next(model, found):
  assert found.models[0] is model
  assert len(found.models) == len(found.steps) + 1
  for step, old, new in zip(
    found.steps, found.models[:-1], found.models[1:], strict=True
  ):
    part = Part(step.block, step.part)
    assert part in parts.parts_left(old, ('attention', 'neurons', 'blocks'))
    inputs = ('token', 'mean', 'class_map')
    assert new.module == parts.without(old, part, inputs).module
    assert step.macs == new.macs(executed=True) < old.macs(executed=True)
    assert step.parameters == new.num_parameters < old.num_parameters
    # Only the repaired blocks have other arrays.
    changed = {
      block for block in new.block_origins if not _alike(old, new, block)
    }
    # After some of them all later MLPs are refitted.
    assert step.settled or changed <= {step.block, parts.mender(old, part)}
  assert found.reached >= 1.6 > found.speedup(found.points[-2])


def _alike(old, new, block):
  one, other = (
    m.params[block_name(parts.position_of(m, block))] for m in (old, new)
  )
  return jax.tree.structure(one) == jax.tree.structure(other) and all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  )


@pytest.mark.slow
def test_the_error_is_that_of_the_model_on_the_held_out_images(model, found):
  held = IMAGES[3::4]
  dense = np.asarray(model(held), np.float64)
  for step, smaller in zip(found.steps, found.models[1:], strict=True):
    error = scores.divergence(dense, np.asarray(smaller(held), np.float64))
    # The same network by other programs.
    assert step.error == pytest.approx(error, rel=1e-3, abs=1e-7)
  assert found.start.error == found.dense.error == 0.0


@pytest.mark.slow
def test_the_best_ratio_of_those_scored_is_taken(model, found):
  now, cost = 0.0, model.macs(executed=True)
  goal = cost / 1.6
  for step, before in zip(found.steps, found.models[:-1], strict=True):
    ratios = {
      (block, kind): (score - now)
      / (
        cost
        # What is saved beyond the target counts for nothing.
        - max(
          parts.without(
            before, Part(block, kind), ('token', 'mean', 'class_map')
          ).macs(executed=True),
          goal,
        )
      )
      for block, kind, score in step.scores
    }
    assert min(ratios, key=ratios.get) == (step.block, step.part)
    now, cost = step.error, step.macs


def test_the_last_step_does_not_pay_for_more_than_was_asked(model, monkeypatch):
  # Attention is the cheapest per operation, but an eighth of the neurons of one
  # MLP is enough.
  whole = model.macs(executed=True)
  neurons, attention = (
    whole - parts.without(model, Part(1, kind), ()).macs(executed=True)
    for kind in ('neurons', 'attention')
  )
  assert attention > 2 * neurons
  dear = 0.75 * attention / neurons

  def priced(scorer, smaller, first):
    return sum(96 - width for width in smaller.mlp_dims) / 12 + dear * sum(
      mode != 'full' for mode in smaller.attention_modes
    )

  monkeypatch.setattr(scores.Scorer, '__call__', priced)
  options = {'parts': ['attention', 'neurons'], 'repair': False}

  def kinds(saved):
    found = compress(model, whole / (whole - saved), **options)
    return [step.part for step in found.steps]

  assert kinds(0.9 * neurons) == ['neurons']
  assert kinds(0.9 * attention) == ['attention']


def silent(model, block, *halves):
  """`model`, with halves of a block that add nothing to the stream."""
  params = jax.tree.map(np.array, model.params)
  for half, projection in halves:
    for leaf in params[block_name(block)][half][projection].values():
      leaf[:] = 0.0
  return model.replace(params=params)


ATTENTION, MLP = ('attn', 'proj'), ('mlp', 'fc2')


@pytest.mark.parametrize(
  ('halves', 'options', 'kind'),
  [
    slow([ATTENTION], {'parts': ['attention']}, 'attention'),
    slow([ATTENTION], {'parts': ['attention'], 'inputs': ()}, 'attention'),
    slow([MLP], {'parts': ['neurons']}, 'neurons'),
    slow([ATTENTION, MLP], {'parts': ['blocks']}, 'block'),
    ([ATTENTION, MLP], {'parts': ['blocks'], 'repair': False}, 'block'),
  ],
)
def test_a_part_that_does_nothing_goes_first_at_no_error(
  model, halves, options, kind
):
  dense = silent(model, 1, *halves)
  found = compress(dense, 1.05, **options)
  first = found.steps[0]
  assert (first.block, first.part) == (1, kind)
  # Squares of float32 rounding.
  assert first.error < 1e-9
  np.testing.assert_allclose(found.models[1](IMAGES), dense(IMAGES), atol=1e-3)


@pytest.mark.slow
def test_neurons_that_are_affine_in_others_cost_nothing(model):
  params = jax.tree.map(np.array, model.params)
  first = params['block01']['mlp']['fc1']
  # Each of the first eighth is another one again.
  for leaf in first.values():
    leaf[..., :12] = leaf[..., 12:24]
  dense = model.replace(params=params)
  found = compress(dense, 1.01, parts=['neurons'], ridge=1e-6)
  step = found.steps[0]
  assert (step.block, step.neurons) == (1, 84)
  assert step.error < 1e-7
  assert step.error < 1e-3 * min(
    score for block, _, score in step.scores if block != 1
  )


@pytest.mark.parametrize('target', ['logits', slow('features')])
def test_attention_alone_by_transfer_entropy_is_nose(model, target):
  found = compress(
    model,
    1.4,
    parts=['attention'],
    criterion='transfer_entropy',
    target=target,
    repair=False,
  )
  selection = lv.nose(
    model, [IMAGES], num_layers=len(found.steps), target=target, warn=str
  )
  assert tuple(step.block for step in found.steps) == selection.order
  for step, row in zip(found.steps, selection.rounds, strict=True):
    assert {block: score for block, _, score in step.scores} == row.scores
    assert step.error == row.scores[row.chosen]
  assert same(found.model, lv.prune(model, selection, 'absent'))


NOSE = {
  'parts': ['attention'],
  'criterion': 'transfer_entropy',
  'repair': False,
}


def test_a_search_for_attention_alone_is_resumed_on_its_own_model(
  model, tiny_variant
):
  """Steps of another network would be taken for its own."""
  begun = compress(model, 1.15, **NOSE)
  again = compress(model, 1.3, resume=begun, **NOSE)
  whole = compress(model, 1.3, **NOSE)
  assert len(again.steps) > len(begun.steps) > 0
  assert [dataclasses.replace(s, seconds=0) for s in again.steps] == [
    dataclasses.replace(s, seconds=0) for s in whole.steps
  ]
  other = make_model(tiny_variant, depth=3, seed=5)
  with pytest.raises(UsageError, match='that search had the error'):
    compress(other, 1.3, resume=begun, **NOSE)
  without = lv.drop_blocks(model, (begun.steps[0].block,))
  with pytest.raises(UsageError, match=r'the step attention . cannot be made'):
    compress(without, 2.5, resume=begun, dense=model, **NOSE)
  with pytest.raises(UsageError, match='that search had the error'):
    lv.compress(
      model,
      [IMAGES / 3],
      target_speedup=1.15,
      resume=begun,
      warn=str,
      **NOSE,
    )


@pytest.mark.slow
def test_lazy_and_exact_agree_where_losses_only_add_up(model, monkeypatch):
  # A score that is the sum of what each part costs by itself: no growth ever
  # changes, so that the lazy search may not differ from the exact one.
  price = {'attention': 5.0, 'neurons': 1.0, 'block': 9.0, 'map': 2.0}

  def priced(scorer, model, first):
    gone = 96 * 3 - sum(model.mlp_dims)
    blocks = 3 - model.depth
    lost = [
      price['attention'] * (block + 1)
      for block, mode in zip(
        model.block_origins, model.attention_modes, strict=True
      )
      if mode != 'full'
    ]
    return price['neurons'] * gone / 12 + sum(lost) + 100.0 * blocks

  monkeypatch.setattr(scores.Scorer, '__call__', priced)
  options = {'parts': ['attention', 'neurons'], 'repair': False}
  lazy, exact = (
    compress(model, 1.8, rescore=how, **options) for how in ('lazy', 'all')
  )
  steps = [[(s.block, s.part) for s in f.steps] for f in (lazy, exact)]
  assert steps[0] == steps[1]
  counts = [sum(len(step.scores) for step in f.steps) for f in (lazy, exact)]
  assert counts[0] < 0.6 * counts[1]


@pytest.mark.slow
def test_a_resumed_search_ends_in_the_same_bits(model, found):
  for done in (1, len(found.steps) - 1):
    paths = []
    compress(model, on_step=paths.append)
    text = json.dumps(paths[done - 1].to_json())
    begun = lv.Compression.from_json(json.loads(text))
    again = compress(model, resume=begun)
    assert [dataclasses.replace(s, seconds=0) for s in again.steps] == [
      dataclasses.replace(s, seconds=0) for s in found.steps
    ]
    assert again.pending == found.pending
    assert again.evaluations > begun.evaluations > 0
    assert same(again.model, found.model)


@pytest.mark.slow
def test_a_polish_moves_the_last_network_alone(model, found):
  moved = compress(model, resume=found, finetune=2)
  assert moved.steps == found.steps
  assert same(moved.models[-2], found.models[-2])
  assert moved.model.module == found.model.module
  assert not same(moved.model, found.model)
  assert moved.model.num_parameters == found.model.num_parameters


@pytest.mark.slow
def test_any_point_of_a_path_is_made_again_without_a_search(model, found):
  record = lv.Compression.from_json(found.to_json())
  scored = []
  again = compress(model, resume=record, on_step=scored.append)
  assert same(again.model, found.model)
  assert again.evaluations == found.evaluations
  # What a later search to a higher speed-up goes on with.
  assert again.pending == found.pending
  shorter = compress(model, 1.2, resume=record, on_step=scored.append)
  assert not scored
  assert shorter.model.module == found.at(1.2).module
  count = len(shorter.steps)
  assert count < len(found.steps)
  assert shorter.steps[:-1] == found.steps[: count - 1]
  # A refit is tried there, as at the end of every path.
  assert shorter.steps[-1].settled is not None
  assert shorter.steps[-1].error <= found.steps[count - 1].error


@pytest.mark.slow
def test_refits_stay_where_they_bring_the_output_nearer(model, monkeypatch):
  monkeypatch.setattr('lambda_vit_jax.compression.greedy._SETTLE_EVERY', 1.0)
  found = compress(model, 1.3, parts=['neurons'])
  assert all(step.settled is not None for step in found.steps)
  assert any(step.settled for step in found.steps)
  for step in found.steps:
    scores = {(block, kind): score for block, kind, score in step.scores}
    before = scores[step.block, step.part]
    assert step.error < before if step.settled else step.error == before
  # And the same again without a search.
  assert same(
    compress(model, 1.3, parts=['neurons'], resume=found).model, found.model
  )


@pytest.mark.slow
def test_a_search_goes_on_from_a_smaller_network(model, found):
  middle = found.models[2]
  more = compress(middle, 1.6, dense=model)
  assert more.start.macs == found.steps[1].macs
  # Scored by other programs than those of the path.
  assert more.start.error == pytest.approx(found.steps[1].error, rel=1e-3)
  assert more.reached >= 1.6
  # The speed-up is that over the dense network.
  assert more.speedup(more.points[-1]) == pytest.approx(
    model.macs(executed=True) / more.model.macs(executed=True)
  )
  assert compress(middle, 1.01, dense=model).steps == ()


@pytest.mark.slow
@pytest.mark.parametrize('devices', [2, 8])
def test_same_on_any_number_of_devices(model, found, devices):
  other = compress(model, mesh=mesh_of(devices))
  assert [(s.block, s.part) for s in other.steps] == [
    (s.block, s.part) for s in found.steps
  ]
  # Float32 sums in another order, through solves.
  np.testing.assert_allclose(
    other.model(IMAGES), found.model(IMAGES), atol=5e-3
  )


@pytest.mark.slow
def test_little_memory_changes_no_bit(model, found, monkeypatch):
  kept = compress(model)
  monkeypatch.setattr('lambda_vit_jax.compression.search._STREAMS_SHARE', 1e-9)
  tight = compress(model)
  assert same(tight.model, kept.model)
  assert tight.evaluations > kept.evaluations


@pytest.mark.slow
@pytest.mark.parametrize('fields', [{'layer_scale': 0.1}, {'num_classes': 0}])
def test_other_networks(tiny_variant, fields):
  dense = make_model(dataclasses.replace(tiny_variant, **fields))
  found = compress(dense, 1.2, parts=['attention', 'mlps'])
  assert found.reached >= 1.2
  score = scores.divergence if dense.num_classes else scores.squared_error
  held = IMAGES[3::4]
  rows = (np.asarray(m(held), np.float64) for m in (dense, found.model))
  # The same network by other programs.
  assert found.steps[-1].error == pytest.approx(score(*rows), rel=1e-3)


def test_the_time_of_a_network_is_that_of_its_kinds_of_blocks(
  model, monkeypatch
):
  asked = []
  monkeypatch.setattr(
    costs.BlockTimes, '_ms', lambda _, name, prepare: asked.append(name) or 1.0
  )
  assert costs.BlockTimes(8)(model) == 4.0
  # The last block computes the class token alone.
  assert asked == ['stem', 'full 96', 'full 96', 'full 96 narrow']


def test_a_merge_that_is_not_computed_takes_no_time_of_its_own(
  model, monkeypatch
):
  """The noise between two names of one program would look like a saving."""
  asked = []
  monkeypatch.setattr(
    costs.BlockTimes, '_ms', lambda _, name, prepare: asked.append(name) or 1.0
  )
  costs.BlockTimes(8)(lv.merge_tokens(model, [0, 2, 1]))
  assert asked == [
    'stem',
    'full 96',
    'full 96 merges 2',
    'full 96 narrow 15 tokens',
  ]


@pytest.mark.slow
def test_a_path_of_tokens_alone_has_nothing_to_polish(model):
  lines = []
  found = lv.compress(
    model, [IMAGES], target_speedup=1.05, parts='tokens', finetune=2,
    warn=lines.append,
  )  # fmt: skip
  assert found.reached >= 1.05
  assert any('nothing to polish' in line for line in lines)


def test_blocks_that_double_the_stream_are_not_repaired(model):
  """The dense stream, which repairs aim at, is not doubled."""
  with pytest.raises(ModelError, match='block 1 is identity'):
    compress(lv.prune(model, (1,)), parts='neurons', dense=model)


@pytest.mark.slow
def test_times_are_measured_once_per_kind_of_block(model, monkeypatch):
  asked = []

  def fake(calls, rounds):
    (name,) = calls
    asked.append(name)
    # As if time were proportional to the letters: what matters is that one
    # name has one time.
    return {name: [1e-3 * len(name)] * rounds}

  monkeypatch.setattr(costs, 'time_in_turn', fake)
  found = compress(model, 1.1, parts=['attention', 'blocks'], cost='time')
  assert len(asked) == len(set(asked))
  assert found.timings.keys() == set(asked)
  last = found.steps[-1]
  assert found.reached == found.dense.ms / last.ms >= 1.1
  # A resumed search has the same times and measures none again.
  asked.clear()
  again = compress(
    model, 1.1, parts=['attention', 'blocks'], cost='time', resume=found
  )
  assert not asked
  assert again.timings == found.timings
  assert same(again.model, found.model)


@pytest.mark.parametrize(
  ('options', 'error', 'says'),
  [
    ({'speedup': 1.0}, UsageError, 'above 1'),
    ({'speedup': 90.0}, UsageError, r'out of reach.*it is \d'),
    ({'parts': ['heads']}, UsageError, "'heads' is not known"),
    ({'criterion': 'loss'}, UsageError, 'compress.criterion'),
    ({'target': 'loss'}, UsageError, 'compress.target'),
    ({'cost': 'flops'}, UsageError, 'compress.cost'),
    ({'rescore': 'some'}, UsageError, 'compress.rescore'),
    ({'ridge': -1.0}, UsageError, 'ridge'),
    (
      {'inputs': 'auto'},
      UsageError,
      "compress.inputs='auto': is for linearize",
    ),
    ({'inputs': ('auto:0.2',)}, UsageError, 'name the inputs'),
    ({'memory_gib': 0}, UsageError, r'^memory_gib=0 does.* takes \d.*e-\d'),
    ({'memory_gib': 0, **NOSE}, UsageError, '^memory_gib=0 does'),
  ],
)
def test_bad_options_are_refused_in_one_line(model, options, error, says):
  with pytest.raises(error, match=says) as caught:
    compress(model, **options)
  assert '\n' not in str(caught.value)


def test_too_few_images_are_refused(model):
  # In numbers of what was given, of which a quarter is held back to score.
  with pytest.raises(DataError, match=r'^24 images .*; give at least 42,'):
    lv.compress(model, [IMAGES[:24]], warn=str)
  # First what every map needs, so that no message follows on the next.
  with pytest.raises(DataError, match=r'^4 images .*; give at least 42,'):
    lv.compress(model, [IMAGES[:4]], warn=str)


@pytest.mark.parametrize('needed', [1, 2, 3, 4, 32, 100])
def test_as_many_images_as_a_message_asks_for_are_enough(needed):
  given = paired.least_given(needed, held=1)
  assert given - given // 4 >= needed > given - 1 - (given - 1) // 4
  assert paired.least_given(needed, held=0) == needed


def test_what_cannot_be_compressed_says_why(model):
  with pytest.raises(ModelError, match='quantised'):
    compress(lv.quantize(model))
  with pytest.raises(ModelError, match='merges tokens'):
    compress(lv.merge_tokens(model, 2))


@pytest.mark.slow
def test_another_search_is_not_resumed(model, found):
  with pytest.raises(UsageError, match='resume: that search had criterion'):
    compress(model, criterion='transfer_entropy', resume=found)


@pytest.mark.slow
def test_the_largest_speedup_is_reached_and_no_more(model):
  with pytest.raises(UsageError) as caught:
    compress(model, 90.0)
  largest = float(str(caught.value).split()[-1])
  found = compress(model, largest - 0.002)
  assert found.model.depth == 1
  assert found.reached == pytest.approx(largest, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize('speedup', [1.05, 1.1, 1.2, 1.6])
@pytest.mark.parametrize('other', ['weights', 'images'])
def test_steps_of_another_network_or_other_images_are_refused(
  model, found, other, speedup, tiny_variant
):
  """Their errors would be taken for those of the networks made again."""
  images = [IMAGES] if other == 'weights' else [IMAGES / 3]
  if other == 'weights':
    model = make_model(tiny_variant, depth=3, seed=5)
  with pytest.raises(UsageError, match='that search had the error'):
    lv.compress(model, images, target_speedup=speedup, warn=str, resume=found)


def test_steps_of_polish_are_checked_before_the_search(model):
  never = {'on_step': pytest.fail}
  with pytest.raises(UsageError, match='finetune=-1'):
    compress(model, finetune=-1, **never)
  plain = {'repair': False, 'finetune': 5, **never}
  with pytest.raises(DataError, match='20 images are too few to polish on'):
    lv.compress(model, [IMAGES[:20]], warn=str, **plain)
  doubled = lv.prune(model, (1,))
  with pytest.raises(ModelError, match='doubles the stream'):
    compress(doubled, dense=model, **plain)


def test_few_images_are_warned_of_by_the_key_of_the_search(model):
  lines = []
  with pytest.raises(DataError, match=r'^4 images are too few .* least 42,'):
    lv.compress(model, [IMAGES[:4]], warn=lines.append)
  assert len(lines) == 1
  assert 'in a config: compress.num_images' in lines[0]
