"""One pass over the blocks equals a full forward per trial."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.plain_loop import plain_loop
from lambda_vit_jax.analysis import blocks, memory
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection import trial_readout
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.trials import TrialRunner
from tests.support.processes import run_processes
from tests.support.search_models import (
  NUM_IMAGES,
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

# Nats per channel: float32 activations that differ in the order of sums by 1e-6
# of their deviation, over a few layers.
NATS_PER_CHANNEL = 1e-5

SHAPE = (8, 8, 1)
IMAGES = make_images()
LABELS = np.random.default_rng(1).integers(0, 10, NUM_IMAGES)


def image_set(model, mesh=None, batches=None):
  return read_images(
    batches_of(IMAGES) if batches is None else batches, model, mesh
  )


def labelled():
  return [{'image': IMAGES, 'label': LABELS}]


def entropies(found):
  return {
    variant: np.log(moments.pooled().std).sum()
    for variant, moments in found.items()
  }


def assert_same_entropies(found, expected, channels):
  found, expected = entropies(found), entropies(expected)
  assert found.keys() == expected.keys()
  for variant, value in expected.items():
    assert abs(found[variant] - value) <= NATS_PER_CHANNEL * channels, variant


VARIANTS = ((), (0,), (1,), (2,), (0, 2), (1, 2))


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'pooling': 'avg', 'norm_before_pool': False},
    {'distilled': True, 'num_registers': 1},
    {'num_classes': 0},
    {'layer_scale': 0.5, 'norm_eps': (1e-6, 1e-3, 1e-6, 1e-5)},
  ],
  ids=lambda options: '-'.join(options) or 'plain',
)
def test_same_as_the_plain_loop(tiny_variant, options):
  model = make_model(tiny_variant, **options)
  images = image_set(model)
  found = TrialRunner(model, images).evaluate(VARIANTS)
  expected = plain_loop(model, images, VARIANTS, one_program=True)
  assert_same_entropies(found, expected, 10)
  for moments in found.values():
    assert moments.count.sum() == NUM_IMAGES


@pytest.mark.parametrize(
  'modes, variants',
  [
    (('identity', 'full', 'full'), ((), (1,), (2,))),
    (('full', 'full', 'absent'), ((), (0,), (1,))),
    (('linear', 'full', 'full', 'linear'), ((), (1,), (2,))),
  ],
)
def test_starts_from_networks_that_lack_attention(
  tiny_variant, modes, variants
):
  model = make_model(tiny_variant, len(modes), attention_modes=modes)
  images = image_set(model)
  found = TrialRunner(model, images).evaluate(variants)
  expected = plain_loop(model, images, variants, one_program=True)
  assert_same_entropies(found, expected, 10)


def test_the_two_forms_of_the_plain_loop_agree(tiny_variant):
  model = make_model(tiny_variant, depth=2)
  images = image_set(model)
  fast = plain_loop(model, images, [(1,)])
  assert_same_entropies(
    fast, plain_loop(model, images, [(1,)], one_program=True), 10
  )


def test_features_and_loss(tiny_variant):
  model = make_model(tiny_variant)
  images = image_set(model, batches=labelled())
  variants = [(), (0,), (2,)]
  features = TrialRunner(model, images, 'features').evaluate(variants)
  expected = plain_loop(model, images, variants, 'features', one_program=True)
  assert_same_entropies(features, expected, 24)
  loss = TrialRunner(model, images, 'loss').evaluate([()])[()].pooled()
  logits = np.asarray(model(IMAGES), np.float64)
  exact = np.log(np.exp(logits).sum(-1)) - logits[np.arange(75), LABELS]
  np.testing.assert_allclose(loss.mean[0], exact.mean(), rtol=1e-5)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  'devices', [2, 3, pytest.param(5, marks=SLOW), pytest.param(6, marks=SLOW), 8]
)
def test_same_values_on_any_number_of_devices(tiny_variant, devices):
  model = make_model(tiny_variant)
  expected = TrialRunner(model, image_set(model)).evaluate(VARIANTS[:4])
  mesh = mesh_of(devices)
  found = TrialRunner(model, image_set(model, mesh)).evaluate(VARIANTS[:4])
  assert_same_entropies(found, expected, 10)
  # Images that are already over a mesh bring their devices with them.
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  most = 64 // devices * devices
  there = [jax.device_put(IMAGES[:most], sharding), IMAGES[most:]]
  images = image_set(model, batches=there)
  assert images.placement.mesh.size == devices
  found = TrialRunner(model, images).evaluate(VARIANTS[:4])
  assert_same_entropies(found, expected, 10)


@pytest.mark.parametrize('devices', [1, 8])
def test_fewer_images_than_shards_or_devices(tiny_variant, devices):
  """Shards and devices without an image change nothing."""
  model = make_model(tiny_variant)
  few = image_set(model, mesh_of(devices), [IMAGES[:5]])
  found = TrialRunner(model, few).evaluate([(), (1,)])
  expected = plain_loop(model, few, [(), (1,)], one_program=True)
  assert_same_entropies(found, expected, 10)
  for moments in found.values():
    assert moments.count.sum() == 5
    assert (moments.count > 0).sum() == 5


def test_images_with_a_device_axis_and_a_mask(tiny_variant):
  model = make_model(tiny_variant)
  stacked = IMAGES[:64].reshape(8, 8, *SHAPE)
  padded = np.concatenate([IMAGES[64:], np.full((5, *SHAPE), 7, np.float32)])
  mask = np.arange(16) < 11
  images = image_set(model, batches=[stacked, {'image': padded, 'mask': mask}])
  np.testing.assert_array_equal(np.concatenate(images.images), IMAGES)


def test_every_micro_batch_gives_the_same(tiny_variant):
  model = make_model(tiny_variant)
  images = image_set(model)
  each = memory.bytes_per_image(model.module) / 2**30
  whole = TrialRunner(model, images)
  assert whole.micro_batch == 128
  small = TrialRunner(model, images, memory_gib=4.5 * each)
  assert small.micro_batch == 4
  found, expected = (w.evaluate([(), (1,)]) for w in (small, whole))
  assert_same_entropies(found, expected, 10)
  # Eight micro-batches take turns, so that there are shards to resample.
  assert len(found[()].count) == 32
  assert found[()].count.min() >= 2


def test_block_evaluations_of_a_round(tiny_variant):
  depth = 4
  model = make_model(tiny_variant, depth=depth)
  runner = TrialRunner(model, image_set(model))
  runner.evaluate([(), *((i,) for i in range(depth))])
  assert runner.block_evaluations == depth * (depth + 3) / 2
  # A later round needs no base; its trials share what lies below.
  runner.block_evaluations = 0
  runner.evaluate([(1,), (1, 2), (1, 3)])
  assert runner.block_evaluations == 4 + 2 + 1


@pytest.mark.parametrize('devices', [1, 8])
def test_four_programs_serve_searches_of_any_length(
  tiny_variant, compilations, devices
):
  # A width of its own, so that no other test has compiled the programs.
  variant = dataclasses.replace(tiny_variant, embed_dim=16 + 2 * devices)
  model = make_model(variant, depth=5, drop_path_rate=0.1)
  runner = TrialRunner(model, image_set(model, mesh_of(devices)))
  removed = ()
  before = compilations()
  for block in (4, 0, 3, 1):
    left = [i for i in range(5) if i not in removed]
    runner.evaluate([(), *(tuple(sorted((*removed, i))) for i in left)])
    removed = tuple(sorted((*removed, block)))
  # Blocks that lack attention in the model share the programs, too.
  pruned = prune(model, (3,))
  TrialRunner(pruned, image_set(model, mesh_of(devices))).evaluate([(), (0,)])
  assert compilations() - before <= 4


def test_activations_stay_within_the_budget(tiny_variant, monkeypatch):
  variant = dataclasses.replace(tiny_variant, image_size=16, mlp_ratio=4.0)
  model = make_model(variant, depth=6)
  images = read_images([make_images(300, shape=(16, 16, 1))], model, mesh_of(1))
  budget = 12 * 2**20
  runner = TrialRunner(model, images, memory_gib=budget / 2**30)
  largest = [0]
  before = sum(array.nbytes for array in jax.live_arrays())

  def watched(function):
    @functools.wraps(function)
    def call(*arguments, **options):
      compiled = function.lower(*arguments, **options).compile()
      analysis = compiled.memory_analysis()
      live = sum(array.nbytes for array in jax.live_arrays()) - before
      inside = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
      largest[0] = max(largest[0], live + inside)
      return function(*arguments, **options)

    return call

  for name in ('embed', 'run_block', 'run_mlp'):
    monkeypatch.setattr(blocks, name, watched(getattr(blocks, name)))
  monkeypatch.setattr(
    trial_readout, 'run_tail', watched(trial_readout.run_tail)
  )
  runner.evaluate([(), *((i,) for i in range(6))])
  assert runner.micro_batch >= 8
  assert largest[0] <= budget


def test_the_block_with_nan_is_named(tiny_variant):
  model = make_model(tiny_variant)
  params = jax.tree.map(np.array, model.params)
  params['block02']['mlp']['fc1']['kernel'][0, 0] = np.nan
  bad = model.replace(params=params)
  with pytest.raises(ModelError, match='block 2: activations are NaN'):
    TrialRunner(bad, image_set(model)).evaluate([()])
  params = jax.tree.map(np.array, model.params)
  params['pos_embed'][0, 3] = np.inf
  bad = model.replace(params=params)
  with pytest.raises(ModelError, match='the embedding: activations are NaN'):
    TrialRunner(bad, image_set(model)).evaluate([(1,)])
  params = jax.tree.map(np.array, model.params)
  params['head']['bias'][3] = np.nan
  with pytest.raises(ModelError, match='the logits are NaN'):
    TrialRunner(model.replace(params=params), image_set(model)).evaluate([()])


@pytest.mark.parametrize(
  'target', ['logits', 'features', 'feature_error', 'divergence', 'loss']
)
def test_a_target_is_a_row_of_channels_per_image(target, rng):
  logits, features, other = rng.normal(size=(3, 5, 4)).astype(np.float32)
  labels = np.asarray([0, 3, 1, 2, 2])

  def log_softmax(rows):
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

  wanted, found = log_softmax(other), log_softmax(logits)
  expected = {
    'logits': logits,
    'features': features,
    'feature_error': ((features - other) ** 2).mean(axis=1, keepdims=True),
    'divergence': (np.exp(wanted) * (wanted - found)).sum(1, keepdims=True),
    'loss': -found[np.arange(5), labels][:, None],
  }[target]
  compared = target in ('feature_error', 'divergence')
  values = trial_readout.target_values(
    target, logits, {'features': features}, other if compared else labels
  )
  assert values.shape == expected.shape
  # Float32 sums of four terms of order 1.
  np.testing.assert_allclose(values, expected, atol=1e-5)


def test_bad_input_is_one_line(tiny_variant):
  model = make_model(tiny_variant, depth=2)
  with pytest.raises(DataError, match='no batch holds an image'):
    image_set(model, batches=[])
  masked = {'image': IMAGES[:3], 'mask': np.zeros(3, bool)}
  with pytest.raises(DataError, match='no batch holds an image'):
    image_set(model, batches=[masked])
  with pytest.raises(DataError, match=r'batch 1 has images of shape \(8, 7'):
    image_set(model, batches=[IMAGES, IMAGES[:, :, :7]])
  with pytest.raises(DataError, match='has no `image`'):
    image_set(model, batches=[{'pixels': IMAGES}])
  with pytest.raises(UsageError, match='does not hold one image'):
    TrialRunner(model, image_set(model), memory_gib=1e-9)
  with pytest.raises(UsageError, match='does not hold one image'):
    TrialRunner(model, image_set(model), memory_gib=-1)
  with pytest.raises(UsageError, match='target'):
    TrialRunner(model, image_set(model), 'probabilities')
  with pytest.raises(DataError, match='needs a label'):
    TrialRunner(model, image_set(model), 'loss')
  module = model.module.clone(attention_modes=('diluted', 'full'))
  with pytest.raises(ModelError, match="block 0 is in mode 'diluted'"):
    TrialRunner(model.replace(module=module), image_set(model))


def test_moments_are_those_of_gathered_targets(tiny_variant):
  model = make_model(tiny_variant)
  found = TrialRunner(model, image_set(model)).evaluate([()])[()].pooled()
  logits = np.asarray(model(IMAGES), np.float64)
  np.testing.assert_allclose(found.std, logits.std(axis=0), rtol=1e-5)
  np.testing.assert_allclose(found.mean, logits.mean(axis=0), rtol=1e-4)
  assert found.count == NUM_IMAGES


_PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from lambda_vit_jax.models.variants import Variant
from lambda_vit_jax.selection.nose import nose
from tests.support.search_models import make_images
from tests.support.search_models import make_model
variant = Variant(
  'tiny', image_size=8, patch_size=2, embed_dim=24, depth=3, num_heads=2,
  num_classes=10, mean=(0.5,), std=(0.5,),
)
images = make_images(150)
# The processes hold different numbers of images.
part = images[:90] if sys.argv[2] == '0' else images[90:]
found = nose(make_model(variant), [part], num_layers=2, resamples=0)
assert found.num_samples == 150
print(','.join(f'{score:.4f}' for score in found.rounds[0].scores.values()))
"""


@pytest.mark.slow
def test_same_over_two_processes(tiny_variant):
  first, second = run_processes(_PROCESS)
  assert first == second
  found = nose(
    make_model(tiny_variant), [make_images(150)], num_layers=2, resamples=0
  )
  for text, value in zip(
    first.split(','), found.rounds[0].scores.values(), strict=True
  ):
    # Four digits were printed.
    assert float(text) == pytest.approx(value, abs=2e-4)
