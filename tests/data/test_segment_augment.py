"""The recipe for images with masks: its rates, and each change by a formula."""

import numpy as np
import pytest

from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import masks
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.data.segment_augment import SegmentAugment, distort

GREY = Preprocessing((8, 12), (0.5,), (0.5,), 1.0)
# Shares of the two axes of colour in R, G and B, and luminance: NTSC's YIQ.
YIQ = np.array(
  [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)


def _recipe(**changes):
  plain = {'scale': (1.0, 1.0), 'most_of_one': 1.0, 'flip': 0, 'photometric': 0}
  return SegmentAugment(MaskRules(4), **(plain | changes))


def _record(height, width):
  """Classes 0 to 3 from left to right; grey levels that name the column."""
  columns = np.broadcast_to(np.arange(width), (height, width))
  labels = (4 * columns // width).astype(np.uint8)
  return {'image': columns.astype(np.uint8), 'label': labels, 'index': 0}


def test_scales_are_log_uniform(monkeypatch, rng):
  seen = []
  scaled = masks.scaled
  monkeypatch.setattr(
    masks,
    'scaled',
    lambda size, factor: seen.append(factor) or scaled(size, factor),
  )
  recipe, record = _recipe(scale=(0.25, 4.0)), _record(8, 12)
  for _ in range(600):
    recipe.training(record, GREY, rng)
  share = np.log(seen) / np.log(4.0)
  assert abs(share).max() <= 1
  # Uniform on -1 to 1: deviation 0.577; four standard errors of 600 draws.
  assert abs(share.mean()) < 4 * 0.577 / 600**0.5
  assert abs(share.std() - 0.577) < 0.05


@pytest.mark.parametrize('rate', [0.2, 0.9])
def test_image_and_mask_flip_together_at_their_rate(rate, rng):
  recipe, record = _recipe(flip=rate), _record(8, 12)
  flips = 0
  for _ in range(400):
    pixels, _, labels = recipe.training(record, GREY, rng)
    turned = pixels[0, 0, 0] > pixels[0, -1, 0]
    assert (labels[0, 0] > labels[0, -1]) == turned
    flips += turned
  # Binomial: four standard deviations, of at most 0.02.
  assert abs(flips / 400 - rate) < 0.08


def test_crops_of_one_class_are_drawn_again(rng):
  """Three quarters of a long strip are one class, which fills most crops."""
  record = _record(8, 60)
  record['label'] = np.maximum(record['label'], 2)
  filled = {}
  for most in (1.0, 0.75):
    recipe = _recipe(most_of_one=most)
    filled[most] = 0
    for _ in range(200):
      labels = recipe.training(record, GREY, rng)[2]
      filled[most] += np.bincount(labels.reshape(-1)).max() > 0.75 * labels.size
  # 43 of 49 windows are too full: of ten draws all are so with 0.27.
  assert filled[1.0] > 150
  assert 20 < filled[0.75] < 100


@pytest.mark.parametrize('horizontal', [True, False])
def test_crops_lie_anywhere(horizontal, rng):
  record = _record(8, 60) if horizontal else _record(40, 12)
  record['image'] = np.indices(record['image'].shape)[int(horizontal)].astype(
    np.uint8
  )
  recipe = _recipe()
  first = [recipe.training(record, GREY, rng)[0][0, 0, 0] for _ in range(400)]
  room = 60 - 12 if horizontal else 40 - 8
  assert (min(first), max(first)) == (0, room)
  # Uniform: four standard errors.
  assert abs(np.mean(first) / room - 0.5) < 4 * 0.289 / 400**0.5


class Drawn:
  """A generator whose draws are known: which changes happen, and how far."""

  def __init__(self, **changes):
    names = ('brightness', 'contrast', 'saturation', 'hue')
    self.happens = np.array([name not in changes for name in names], float)
    self.values = np.array([changes.get(name, 0.7) for name in names])

  def random(self, count):
    # Below one half is a change.
    return self.happens[:count]

  def uniform(self, low, high, count):
    assert (low, high) == (-1, 1)
    return self.values[:count]


PIXELS = np.random.default_rng(0).integers(60, 190, (5, 6, 3)).astype(np.uint8)


@pytest.mark.parametrize('strength', [0.5, 1.0])
@pytest.mark.parametrize('amount', [-1.0, 0.25, 1.0])
def test_brightness_adds_up_to_an_eighth_of_the_range(strength, amount):
  found = distort(PIXELS, strength, Drawn(brightness=amount))
  np.testing.assert_allclose(found, PIXELS + 32.0 * strength * amount, atol=0.5)


@pytest.mark.parametrize('amount', [-1.0, 0.5])
def test_contrast_multiplies_by_up_to_a_half(amount):
  found = distort(PIXELS, 1.0, Drawn(contrast=amount))
  expected = np.clip(PIXELS * (1 + amount / 2), 0, 255)
  np.testing.assert_allclose(found, expected, atol=0.5)


@pytest.mark.parametrize(
  'changes, factor, turn',
  [
    ({'saturation': 0.4}, 1.2, 0.0),
    ({'saturation': -1.0}, 0.5, 0.0),
    ({'hue': 0.5}, 1.0, 0.05),
    ({'hue': -1.0}, 1.0, -0.1),
    ({'saturation': -0.6, 'hue': 0.8}, 0.7, 0.08),
  ],
)
def test_colours_keep_their_luminance(changes, factor, turn):
  """Saturation scales the plane of colour, hue turns it, in parts of a turn."""
  # Far from the ends of the range, where values are cut off.
  pixels = (110 + PIXELS / 10).astype(np.uint8)
  found = distort(pixels, 1.0, Drawn(**changes)) @ YIQ.T
  before = pixels @ YIQ.T
  np.testing.assert_allclose(found[..., 0], before[..., 0], atol=1)
  plane = before[..., 1] + 1j * before[..., 2]
  expected = factor * plane * np.exp(2j * np.pi * turn)
  np.testing.assert_allclose(found[..., 1], expected.real, atol=1)
  np.testing.assert_allclose(found[..., 2], expected.imag, atol=1)


def test_each_change_happens_in_every_second_image(rng):
  grey = np.full((1, 1, 1), 100, np.uint8)
  untouched = sum((distort(grey, 1.0, rng) == grey).all() for _ in range(1000))
  # Neither brightness nor contrast: 1/4, and what rounds to no change. Four
  # standard deviations of 0.014.
  assert abs(untouched / 1000 - 0.25) < 0.055 + 0.02
