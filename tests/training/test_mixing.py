"""Mixup and cutmix: label mass, rates, weights, and which images are mixed."""

import functools
import inspect

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
  """512 draws for given probabilities, all from one compiled program."""
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


def test_published_parameters_are_the_default():
  """Mixup 0.8 and cutmix 1.0, half of the time each, of DeiT's recipe."""
  defaults = {
    name: each.default
    for name, each in inspect.signature(mixing.mix).parameters.items()
    if name in ('mixup_alpha', 'cutmix_alpha', 'prob', 'switch_prob')
  }
  assert list(defaults.values()) == [0.8, 1.0, 1.0, 0.5]


def test_prob_zero_changes_nothing(draws):
  images, targets = _batch()
  mixed = draws(0.0, 0.5)
  assert (mixed[0] == images).all()
  assert (mixed[1] == targets).all()


@pytest.mark.parametrize('kind', ['mixup', 'cutmix', 'both'])
def test_every_row_of_targets_keeps_its_mass(many, kind):
  _, targets = many[kind]
  # w + (1 - w) in float32: exact up to the rounding of 1 - w.
  np.testing.assert_allclose(targets.sum(-1), 1.0, atol=1e-7, rtol=0)
  assert targets.min() >= 0


def test_mixup_weights_images_as_targets(many):
  images, _ = _batch()
  mixed, targets = many['mixup']
  share = targets[:, 0, 0][:, None, None, None, None]
  expected = share * images + (1 - share) * images[::-1]
  # Three float32 roundings, fused differently.
  np.testing.assert_allclose(mixed, expected, atol=1e-6)
  np.testing.assert_array_equal(targets[:, 0, -1], 1 - targets[:, 0, 0])


def test_cutmix_targets_count_its_pixels(many):
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
  # Four standard deviations of 512 draws, each at most 0.022. Empty boxes of
  # cutmix move a few per cent of the draws to `untouched`.
  assert abs(blended.mean() - 0.3) < 0.09
  assert 0.2 < cut.mean() < 0.39
  assert abs((untouched | cut).mean() - 0.7) < 0.09
  assert (targets[untouched][:, 0, 0] == 1).all()


def test_mixups_share_follows_its_beta(many):
  share = many['mixup'][1][:, 0, 0]
  # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)). Four standard errors
  # of 512 draws.
  assert abs(share.mean() - 0.5) < 4 * np.sqrt(1 / (4 * 2.6) / 512)
  assert abs(share.var() - 1 / (4 * 2.6)) < 0.02


def test_cutmix_draws_by_its_own_parameter():
  """Not by mixup's, with which shares would lie near 0 and 1."""
  images, targets = _batch()

  @jax.jit
  @jax.vmap
  def share(key):
    # Cutmix always.
    return mixing.mix(images, targets, key, 0.2, 8.0, 1.0, 1.0)[1][0, 0]

  shares = np.asarray(share(jax.random.split(jax.random.key(5), 512)))
  # Beta(8, 8) has variance 0.015, Beta(0.2, 0.2) 0.179; whole pixels and the
  # clipped border add less than 0.02.
  assert shares.var() < 0.06


def _boxes(kept, number=2048):
  keys = jax.random.split(jax.random.key(1), number)
  draw = jax.vmap(lambda key: mixing.box_mask(key, HEIGHT, WIDTH, kept))
  return np.asarray(draw(keys))


# The root of 1 - kept, of 12 and of 9: even and odd sides.
SIDES = [(1.0, (0, 0)), (0.75, (6, 4)), (1 - (5.5 / 12) ** 2, (5, 4))]


@pytest.mark.parametrize('kept, sides', SIDES)
def test_box_of_known_share(kept, sides):
  boxes = _boxes(kept)
  # The border may clip a box, not enlarge it.
  assert boxes.any(2).sum(1).max() == sides[0]
  assert boxes.any(1).sum(1).max() == sides[1]
  # It is the product of its rows and its columns.
  np.testing.assert_array_equal(
    boxes, boxes.any(2)[:, :, None] & boxes.any(1)[:, None, :]
  )


@pytest.mark.parametrize('kept, sides', SIDES[1:])
def test_boxes_have_their_centre_at_each_pixel_alike(kept, sides):
  boxes = _boxes(kept)
  for axis, (length, side) in enumerate(
    zip((HEIGHT, WIDTH), sides, strict=True)
  ):
    inside = boxes.any(2 - axis)
    # From side // 2 before the centre to (side + 1) // 2 after it, clipped:
    # a pixel is covered by so many of the possible centres.
    centres = np.arange(length)
    expected = [
      np.mean((centres > i - (side + 1) // 2) & (centres <= i + side // 2))
      for i in range(length)
    ]
    # Four standard deviations of 2048 draws.
    np.testing.assert_allclose(
      inside.mean(0), expected, atol=4 * 0.5 / 2048**0.5
    )


def test_rows_and_columns_of_a_box_are_independent():
  # Every centre has a box of its own, so that all pairs of a row and a column
  # are seen: in 2048 draws each is missing with a probability of e^-19.
  boxes = _boxes(0.75)
  assert len(np.unique(boxes, axis=0)) == HEIGHT * WIDTH


def test_dtypes_stay():
  images, targets = _batch()
  mixed = mixing.mix(
    jnp.asarray(images, jnp.bfloat16), targets, jax.random.key(0), 0.0, 1.0
  )
  assert mixed[0].dtype == jnp.bfloat16
  assert mixed[1].dtype == jnp.float32


@pytest.mark.parametrize('kind', [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_groups_are_batches_of_their_own(kind):
  images, targets = _batch()
  key = jax.random.key(3)
  # Compiled as a whole: rounding would differ from op to op.
  mix = jax.jit(mixing.mix, static_argnames=('mixup_alpha', 'cutmix_alpha'))
  alphas = dict(zip(('mixup_alpha', 'cutmix_alpha'), kind, strict=True))
  grouped = jax.jit(functools.partial(mixing.mix, group_size=2, **alphas))(
    images, targets, key
  )
  for group, own in enumerate(jax.random.split(key, BATCH // 2)):
    part = slice(2 * group, 2 * group + 2)
    expected = mix(images[part], targets[part], own, **alphas)
    for found, wanted in zip(grouped, expected, strict=True):
      # A product and a sum in float32, fused differently.
      np.testing.assert_allclose(found[part], wanted, atol=1e-6)


def test_groups_draw_for_themselves():
  images, targets = _batch()
  _, mixed = mixing.mix(
    images, targets, jax.random.key(3), 0.8, 0.0, group_size=2
  )
  shares = np.diag(mixed)
  np.testing.assert_array_equal(shares[::2], shares[1::2])
  assert len(set(shares[::2].tolist())) == BATCH // 2
  # None is mixed beyond its group.
  outside = np.kron(np.eye(BATCH // 2), np.ones((2, 2))) == 0
  assert not np.asarray(mixed)[outside].any()


def test_a_group_of_the_whole_batch_is_no_group():
  images, targets = _batch()
  key = jax.random.key(3)
  for found, expected in zip(
    mixing.mix(images, targets, key, group_size=BATCH),
    mixing.mix(images, targets, key),
    strict=True,
  ):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize('group_size, moves', [(2, False), (None, True)])
def test_groups_within_a_device_are_mixed_there(group_size, moves):
  """Images of other devices would be sent with every step."""
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ('batch',))
  rows = jax.NamedSharding(mesh, jax.P('batch'))
  everywhere = jax.NamedSharding(mesh, jax.P())
  mixer = jax.jit(
    functools.partial(mixing.mix, group_size=group_size),
    in_shardings=(rows, rows, everywhere),
    out_shardings=(rows, rows),
  )
  images = jax.ShapeDtypeStruct((8, HEIGHT, WIDTH, 3), jnp.float32)
  targets = jax.ShapeDtypeStruct((8, 5), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  text = mixer.lower(images, targets, key).compile().as_text()
  sent = [
    line
    for line in text.splitlines()
    if any(
      name in line
      for name in ('collective-permute(', 'all-to-all(', 'all-gather(')
    )
    # Rows of images; the draws themselves are small.
    and f'{HEIGHT},{WIDTH},3' in line
  ]
  assert bool(sent) == moves, sent
