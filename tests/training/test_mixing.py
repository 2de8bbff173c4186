"""Mixup and cutmix: exact label mass, rates, and what mixes with what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.training import mixing

HEIGHT, WIDTH = 12, 9
BATCH = 6


def _batch():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(BATCH, HEIGHT, WIDTH, 3)).astype(np.float32)
  targets = np.eye(BATCH, dtype=np.float32)
  return images, targets


@pytest.fixture(scope='module')
def draws():
  """512 draws for given chances; one compilation for all of them."""
  images, targets = _batch()
  keys = jax.random.split(jax.random.key(0), 512)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None, None))
  def draw(key, prob, switch_prob):
    return mixing.mix(images, targets, key, 0.8, 1.0, prob, switch_prob)

  return lambda *chances: jax.tree.map(np.asarray, draw(keys, *chances))


@pytest.fixture(scope='module')
def many(draws):
  return {
    'mixup': draws(1.0, 0.0),
    'cutmix': draws(1.0, 1.0),
    'both': draws(0.6, 0.5),
  }


def test_off_is_the_identity():
  images, targets = _batch()
  mixed = mixing.mix(images, targets, jax.random.key(0), 0.0, 0.0)
  assert mixed[0] is images
  assert mixed[1] is targets


def test_prob_zero_changes_nothing(draws):
  images, targets = _batch()
  mixed = draws(0.0, 0.5)
  assert (mixed[0] == images).all()
  assert (mixed[1] == targets).all()


@pytest.mark.parametrize('kind', ['mixup', 'cutmix', 'both'])
def test_every_row_of_targets_keeps_its_mass(many, kind):
  _, targets = many[kind]
  # w + (1 - w) in float32: exact but for one rounding of 1 - w.
  np.testing.assert_allclose(targets.sum(-1), 1.0, atol=1e-7, rtol=0)
  assert targets.min() >= 0


def test_mixup_is_the_convex_sum_its_targets_say(many):
  images, _ = _batch()
  mixed, targets = many['mixup']
  share = targets[:, 0, 0][:, None, None, None, None]
  expected = share * images + (1 - share) * images[::-1]
  # The same three float32 roundings, fused differently.
  np.testing.assert_allclose(mixed, expected, atol=1e-6)
  np.testing.assert_array_equal(targets[:, 0, -1], 1 - targets[:, 0, 0])


def test_cutmix_takes_whole_pixels_and_targets_count_them(many):
  images, _ = _batch()
  mixed, targets = many['cutmix']
  own = (mixed == images).all(-1)
  other = (mixed == images[::-1]).all(-1)
  assert (own | other).all()
  assert (own != other).all()
  # Pixel counts are whole numbers: their mean is one float32 division.
  np.testing.assert_allclose(
    own.mean((2, 3)), np.einsum('kbb->kb', targets), atol=1e-7
  )
  # One box for the whole batch.
  assert (own == own[:, :1]).all()
  rows, columns = own[:, 0].all(2), own[:, 0].all(1)
  rectangle = rows[:, :, None] | columns[:, None, :]
  np.testing.assert_array_equal(own[:, 0], rectangle)


def test_rates_of_the_two_kinds(many):
  images, _ = _batch()
  mixed, targets = many['both']
  untouched = (mixed == images).all((1, 2, 3, 4))
  whole = ((mixed == images) | (mixed == images[::-1])).all(-1)
  cut = whole.all((1, 2, 3)) & ~untouched
  blended = ~whole.any((1, 2, 3))
  # 512 draws: a standard deviation is at most 0.022; four of them. Small
  # boxes of cutmix are empty, which moves a few per cent to `untouched`.
  assert abs(blended.mean() - 0.3) < 0.09
  assert 0.2 < cut.mean() < 0.39
  assert abs((untouched | cut).mean() - 0.7) < 0.09
  assert (targets[untouched][:, 0, 0] == 1).all()


def test_mixups_share_follows_its_beta(many):
  share = many['mixup'][1][:, 0, 0]
  # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); four standard
  # errors of 512 draws.
  assert abs(share.mean() - 0.5) < 4 * np.sqrt(1 / (4 * 2.6) / 512)
  assert abs(share.var() - 1 / (4 * 2.6)) < 0.02


@pytest.mark.parametrize('standing, area', [(1.0, 0), (0.75, 6 * 4)])
def test_box_of_known_share(standing, area):
  keys = jax.random.split(jax.random.key(1), 64)
  boxes = jax.vmap(lambda k: mixing.box_mask(k, HEIGHT, WIDTH, standing))(keys)
  sizes = np.asarray(boxes).sum((1, 2))
  # sqrt(0.25) of 12 x 9 is 6 x 4; the border may clip a box, not enlarge it.
  assert sizes.max() == area


def test_dtypes_stay():
  images, targets = _batch()
  mixed = mixing.mix(
    jnp.asarray(images, jnp.bfloat16), targets, jax.random.key(0), 0.0, 1.0
  )
  assert mixed[0].dtype == jnp.bfloat16
  assert mixed[1].dtype == jnp.float32
