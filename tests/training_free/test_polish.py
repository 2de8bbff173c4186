"""`polish`: what it moves, towards what, and that only the job decides it."""

import jax
import numpy as np
import pytest
import scipy.special

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import polish as polishing
from lambda_vit_jax.training_free.polish import (
  PolishOptions,
  polish,
  polish_job,
)
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images()
# Others of the same kind.
UNSEEN = make_images(seed=1)
STEPS = {'steps': 20, 'learning_rate': 1e-3, 'batch_size': 16}


@pytest.fixture(scope='module')
def dense(tiny_variant):
  return make_model(tiny_variant)


@pytest.fixture(scope='module')
def fitted(dense):
  return lv.linearize(dense, [IMAGES], [1])


@pytest.fixture(scope='module')
def polished(dense, fitted):
  return polish(fitted, dense, batches_of(IMAGES), **STEPS)


def gap(model, dense, images=UNSEEN):
  """What `polish` lessens: of normed streams and of logits, in float64."""

  def outputs(each):
    logits, taps = each.apply(images)
    streams = []
    for index in range(dense.depth):
      x = np.asarray(taps[block_name(index)]['output'], np.float64)
      centred = x - x.mean(axis=-1, keepdims=True)
      streams.append(centred / centred.std(axis=-1, keepdims=True))
    logits = np.asarray(logits, np.float64)
    return np.stack(streams), scipy.special.log_softmax(logits, axis=-1)

  (ours, guess), (theirs, truth) = outputs(model), outputs(dense)
  distances = ((ours - theirs) ** 2).mean(axis=-1)
  streams = 0.5 * (distances.mean() + distances[:, :, 0].mean())
  return streams + (np.exp(truth) * (truth - guess)).sum(axis=-1).mean()


def test_unseen_images_come_closer_to_the_dense_network(dense):
  """Steps in another direction, or towards the images, would not."""
  short = lv.prune(dense, [1], 'absent')
  assert gap(polish(short, dense, [IMAGES], **STEPS), dense) < 0.8 * gap(
    short, dense
  )


def test_maps_come_closer_than_their_closed_form(dense, fitted, polished):
  """Which is the best map of its block, but not together with the MLPs."""
  assert gap(polished, dense, IMAGES) < gap(fitted, dense, IMAGES)


def test_maps_and_the_mlps_after_a_change_are_all_that_moves(fitted, polished):
  moved = set()

  def compare(path, old, new):
    names = [part.key for part in path]
    if not np.array_equal(old, new):
      moved.add('/'.join(names[:2]))

  jax.tree_util.tree_map_with_path(compare, fitted.params, polished.params)
  assert moved == {'block01/attn', 'block01/mlp', 'block02/mlp'}
  assert polished.module == fitted.module


def test_devices_share_the_images_of_a_step(dense, fitted, polished):
  """Sums of rounded products in another order, over twelve steps of Adam."""
  found = polish(
    fitted, dense, batches_of(IMAGES, 50), mesh=mesh_of(4), **STEPS
  )
  np.testing.assert_allclose(gap(found, dense), gap(polished, dense), rtol=1e-4)


@pytest.mark.parametrize('area', [1.0, 0.5])
def test_batches_from_a_later_step_are_those_of_the_whole(dense, fitted, area):
  """Of several epochs, with 75 images in steps of 16: what a resume reads."""
  mesh = mesh_of(1)
  mesh = jax.sharding.Mesh(mesh.devices.reshape(1, 1), ('data', 'fsdp'))
  options = PolishOptions(20, 1e-3, 16, area)
  job = polish_job(fitted, dense, IMAGES, options, mesh)
  whole, rest = job.make_batches(0), job.make_batches(7)
  every = [next(whole)['image'] for _ in range(15)]
  for step in range(7, 15):
    np.testing.assert_array_equal(next(rest)['image'], every[step])
  # One epoch reads every image, or a crop of it, once.
  first = np.concatenate(every)[: len(IMAGES)]
  assert len(np.unique(first, axis=0)) == len(IMAGES)
  again = np.concatenate(every)[len(IMAGES) : 2 * len(IMAGES)]
  both = np.unique(np.concatenate([first, again]), axis=0)
  # In the next the same images, but other crops.
  assert len(both) == (1 if area == 1.0 else 2) * len(IMAGES)
  # The last step of an epoch may be shared with the next.
  assert job.steps_per_epoch == 5


def test_dropped_blocks_follow_the_streams_that_remain(dense):
  """After block 0 comes what was block 2: its input is what to aim at."""
  short = lv.drop_blocks(dense, [1])
  found = polish(short, dense, [IMAGES], **STEPS)

  def last(model):
    x = np.asarray(model.apply(UNSEEN)[1]['features'], np.float64)
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)

  before, after = (
    ((last(model) - last(dense)) ** 2).mean() for model in (short, found)
  )
  assert after < 0.9 * before


def test_a_network_without_a_head_is_polished_by_its_features(tiny_variant):
  dense = make_model(tiny_variant, num_classes=0)
  short = lv.prune(dense, [1], 'absent')
  assert gap(polish(short, dense, [IMAGES], **STEPS), dense) < 0.8 * gap(
    short, dense
  )


@pytest.mark.parametrize(
  'change, error, message',
  [
    ({'steps': 0}, UsageError, 'at least one step'),
    ({'batch_size': 0}, UsageError, 'batch_size=0'),
    ({'learning_rate': -1.0}, UsageError, 'learning_rate=-1: give a number'),
    ({'crop_area': 0.0}, UsageError, 'crop_area=0: give a share'),
    ({'crop_area': 1.5}, UsageError, 'crop_area=1.5: give a share'),
    ({'learning_rate': 1e30}, ModelError, 'not finite at step'),
  ],
)
def test_impossible_options_are_refused(dense, fitted, change, error, message):
  with pytest.raises(error, match=message):
    polish(fitted, dense, [IMAGES], **(STEPS | change))


def test_weights_of_nan_are_not_blamed_on_the_rate(dense, fitted):
  params = jax.tree.map(np.array, dense.params)
  params['block00']['mlp']['fc1']['bias'][0] = np.nan
  broken = dense.replace(params=params)
  with pytest.raises(ModelError, match='polish: activations are NaN'):
    polish(fitted, broken, [IMAGES], **STEPS)


def test_without_maps_and_mlps_there_is_nothing_to_polish(dense):
  bare = lv.narrow_mlps(dense, {block: [] for block in range(dense.depth)})
  with pytest.raises(ModelError, match='nothing to polish'):
    polish(lv.prune(bare, (1,), 'absent'), bare, [IMAGES], **STEPS)


def test_models_that_cannot_be_polished_are_refused(dense, fitted):
  for model, message in (
    (dense, 'nothing to polish'),
    (lv.prune(dense, [1]), 'doubles the stream'),
  ):
    with pytest.raises(ModelError, match=message):
      polish(model, dense, [IMAGES], **STEPS)
  with pytest.raises(DataError, match='too few'):
    polish(fitted, dense, [IMAGES[:8]], **STEPS)


def test_progress_counts_steps(dense, fitted, monkeypatch):
  seen = []
  options = STEPS | {'steps': 2}
  polish(
    fitted, dense, [IMAGES], on_progress=lambda *x: seen.append(x), **options
  )
  assert seen == [(1, 2), (2, 2)]
  assert polishing.BATCH_SIZE == 32
