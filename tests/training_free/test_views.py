"""Random views: where their pixels come from, in closed form."""

import dataclasses

import numpy as np
import pytest

from lambda_vit_jax.training_free import views
from lambda_vit_jax.training_free.views import Crops


def crops_of(top, left, height, width, mirrored):
  numbers = [np.array([value], float) for value in (top, left, height, width)]
  return Crops(*numbers, np.array([mirrored]))


WHOLE = crops_of(0, 0, 1, 1, False)


def test_the_whole_image_is_itself_and_mirrored_its_mirror_image(rng):
  """To the bit: every weight is 0 or 1."""
  images = rng.normal(size=(1, 5, 8, 3)).astype(np.float32)
  np.testing.assert_array_equal(views.take(images, WHOLE), images)
  mirrored = dataclasses.replace(WHOLE, mirrored=np.array([True]))
  found = views.take(images, mirrored)
  np.testing.assert_array_equal(found, images[:, :, ::-1])
  assert found.dtype == np.float32


@pytest.mark.parametrize('mirrored', [False, True])
def test_a_crop_of_a_ramp_is_its_part_of_the_ramp(mirrored):
  """Linear interpolation of a linear image is exact away from the border."""
  height, width = 10, 20
  # At (j + ½) / size the value is the place: down in one channel, across in one.
  down, across = np.meshgrid(
    (np.arange(height) + 0.5) / height,
    (np.arange(width) + 0.5) / width,
    indexing='ij',
  )
  images = np.stack([down, across], axis=-1)[None].astype(np.float32)
  found = views.take(images, crops_of(0.2, 0.3, 0.6, 0.5, mirrored))[0]
  wanted = 0.2 + 0.6 * down, 0.3 + 0.5 * across
  if mirrored:
    wanted = wanted[0], wanted[1][:, ::-1]
  # float32 weights of numbers up to 1.
  np.testing.assert_allclose(found, np.stack(wanted, axis=-1), atol=1e-6)


def test_beyond_the_outermost_centres_the_outermost_pixel_counts():
  images = np.array([1.0, 2.0], np.float32).reshape(1, 1, 2, 1)
  found = views.take(images, crops_of(0, 0, 1, 0.2, False))
  # Both output pixels lie left of the first pixel's centre at ¼.
  np.testing.assert_array_equal(found.ravel(), [1.0, 1.0])


def test_weights_are_a_mean(rng):
  starts, lengths = rng.uniform(0, 0.4, 50), rng.uniform(0.1, 0.6, 50)
  weights = views.interpolation(starts, lengths, 7)
  assert weights.min() >= 0
  np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)


def test_every_image_has_the_crop_of_its_own(rng):
  images = rng.normal(size=(6, 4, 4, 1)).astype(np.float32)
  crops = views.draw(6, 0.3, (1, 2))
  found = views.take(images, crops)
  for index in range(6):
    part = crops.rows(index, index + 1)
    alone = views.take(images[index : index + 1], part)[0]
    np.testing.assert_allclose(found[index], alone, atol=1e-6)


@pytest.mark.parametrize('least', [0.05, 0.5, 0.9, 1.0])
def test_crops_lie_in_the_image_and_have_their_area(least):
  crops = views.draw(20_000, least, (0,))
  for start, length in (
    (crops.top, crops.height),
    (crops.left, crops.width),
  ):
    assert start.min() >= 0
    assert (start + length).max() <= 1 + 1e-12
  area = crops.height * crops.width
  assert area.max() <= 1 + 1e-12
  assert area.min() >= least - 1e-12
  aspect = crops.width / crops.height
  assert 0.75 - 1e-12 <= aspect.min() <= aspect.max() <= 4 / 3 + 1e-12
  # Twenty thousand coins: five deviations are 0.018.
  assert crops.mirrored.mean() == pytest.approx(0.5, abs=0.018)
  # Uniform: the mean of twenty thousand, to five deviations.
  assert area.mean() == pytest.approx((1 + least) / 2, abs=0.011)


def test_the_same_step_draws_the_same():
  ours, again, other = (views.draw(8, 0.5, (3, s)) for s in (7, 7, 8))
  np.testing.assert_array_equal(ours.top, again.top)
  assert not np.array_equal(ours.top, other.top)
