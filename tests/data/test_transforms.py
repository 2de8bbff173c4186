"""Geometry against formulas of their own."""

import math

import numpy as np
import pytest
from PIL import Image

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.images import normalise
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import decode, randaugment, transforms
from lambda_vit_jax.data.augment import Augment
from tests.support.pictures import encode, photo

BICUBIC = Image.Resampling.BICUBIC
RGB = Preprocessing((8, 8), crop_ratio=1.0)


# --- evaluation geometry ----------------------------------------------------


def _training_array(data, preprocessing, augment, rng):
  """A training image, normalised and with the erased part."""
  record = {'image': data, 'label': 0, 'index': 0}
  pixels, patch, _ = augment.training(record, preprocessing, rng)
  array = normalise(pixels, preprocessing)
  if patch is not None:
    patch.paste(array)
  return array


@pytest.mark.parametrize(
  'size',
  [(300, 200), (200, 300), (257, 256), (333, 77), (64, 64), (20, 90), (8, 8)],
)
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_shorter_side_then_centre(size, interpolation, rng):
  image = photo(*size, rng)
  preprocessing = Preprocessing(
    (56, 56), crop_ratio=0.875, interpolation=interpolation
  )
  found = transforms.resize_and_crop(image, preprocessing)
  width, height = size
  short = min(size)
  # The reference recipe: 64 on the shorter side, the rest cut off.
  scaled = (int(64 * width / short), int(64 * height / short))
  expected = image.resize(scaled, transforms.RESAMPLING[interpolation])
  left = round((scaled[0] - 56) / 2.0)
  top = round((scaled[1] - 56) / 2.0)
  expected = expected.crop((left, top, left + 56, top + 56))
  np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize('size', [(40, 30), (30, 40), (200, 31), (7, 5)])
@pytest.mark.parametrize('target', [(24, 16), (16, 24), (9, 30)])
def test_oblong_targets_are_exact_and_covered(size, target, rng):
  preprocessing = Preprocessing(target, crop_ratio=0.9)
  found = transforms.resize_and_crop(photo(*size, rng), preprocessing)
  assert (found.height, found.width) == target


def test_right_size_is_left_alone(rng):
  image = photo(8, 8, rng)
  preprocessing = Preprocessing((8, 8), crop_ratio=1.0)
  assert transforms.resize_and_crop(image, preprocessing) is image


def test_a_thin_strip_does_not_take_gigabytes():
  image = Image.new('RGB', (60_000, 2))
  found = transforms.resize_and_crop(image, Preprocessing((224, 224)))
  assert found.size == (224, 224)


@pytest.mark.parametrize('size', [(48, 3), (3, 48), (51, 3), (3, 51)])
def test_ends_of_strips_are_left_out_beyond_sixteen_to_one(size, rng):
  image = photo(*size, rng)
  found = transforms._limit_proportions(image, 1.0)
  if max(size) == 48:
    assert found is image
    return
  cut = tuple((side - min(side, 48)) // 2 for side in size)
  box = (
    *cut,
    *(at + min(side, 48) for at, side in zip(cut, size, strict=True)),
  )
  assert found.tobytes() == image.crop(box).tobytes()


@pytest.mark.parametrize('size', [(256, 8), (8, 256)])
def test_a_wide_model_sees_all_of_a_wide_image(size, rng):
  image = photo(*size, rng)
  preprocessing = Preprocessing(size[::-1], crop_ratio=1.0)
  assert transforms.resize_and_crop(image, preprocessing) is image


def test_normalisation():
  preprocessing = Preprocessing((2, 1))
  pixels = np.array([[[0, 128, 255]], [[10, 20, 30]]], np.uint8)
  found = transforms.evaluation_array(pixels, preprocessing)
  expected = (pixels / 255 - preprocessing.mean) / preprocessing.std
  assert found.dtype == np.float32
  assert found.shape == (2, 1, 3)
  # A float32 product and sum of numbers below 5.
  np.testing.assert_allclose(found, expected, atol=1e-6)


# --- random resized crop ----------------------------------------------------


def test_crop_distribution():
  rng = np.random.default_rng(0)
  size = (400, 300)
  boxes = np.array(
    [
      transforms.sample_crop(size, (0.1, 0.5), (3 / 4, 4 / 3), rng)
      for _ in range(3000)
    ]
  )
  left, top, right, bottom = boxes.T
  assert (left >= 0).all()
  assert (top >= 0).all()
  assert (right <= 400).all()
  assert (bottom <= 300).all()
  areas = (right - left) * (bottom - top) / 120_000
  # Uniform: mean 0.3, deviation 0.115; four standard errors of 3000, and
  # half a per cent for the sides' rounding.
  assert abs(areas.mean() - 0.3) < 4 * 0.115 / math.sqrt(3000) + 0.0015
  assert abs(areas.std() - 0.4 / math.sqrt(12)) < 0.01
  log_aspect = np.log((right - left) / (bottom - top))
  assert abs(log_aspect.mean()) < 0.02
  assert abs(log_aspect).max() < math.log(4 / 3) + 0.02
  # Places are uniform over what fits.
  for start, room in (
    (left, 400 - (right - left)),
    (top, 300 - (bottom - top)),
  ):
    # Uniform: deviation 0.289; four standard errors of 3000, and rounding.
    share = start[room > 20] / room[room > 20]
    assert abs(share.mean() - 0.5) < 0.03
    assert abs(share.std() - 0.289) < 0.02


@pytest.mark.parametrize(
  'size, box',
  [((400, 10), (193, 0, 206, 10)), ((10, 400), (0, 193, 10, 206))],
)
def test_crop_that_never_fits_is_the_centre(size, box):
  rng = np.random.default_rng(0)
  found = transforms.sample_crop(size, (0.9, 1.0), (3 / 4, 4 / 3), rng)
  assert found == box


@pytest.mark.parametrize('quality', [95])
def test_draft_scaling_gives_nearly_the_same_pixels(quality, rng):
  image = photo(640, 480, rng)
  data = encode(image, 'JPEG', quality=quality)
  box = (100, 60, 500, 420)
  opened = decode.open_image(data)
  found = transforms.crop_and_resize(opened, box, Preprocessing((40, 44)))
  full = decode.load(decode.open_image(data), 3)
  expected = full.crop(box).resize((44, 40), BICUBIC)
  difference = np.asarray(found, float) - np.asarray(expected, float)
  # JPEG's own reduction by 8 against bicubic from the full size.
  assert abs(difference).mean() < 1.5
  # It was not decoded at full size.
  opened = decode.open_image(data)
  decode.load(opened, 3, draft_size=(71, 54))
  assert opened.size == (80, 60)


def test_draft_never_enlarges(rng):
  data = encode(photo(64, 64, rng), 'JPEG')
  opened = decode.open_image(data)
  decode.load(opened, 3, draft_size=(50, 50))
  assert opened.size == (64, 64)


# --- affine -----------------------------------------------------------------


def test_no_warp_is_the_identity(rng):
  coefficients = transforms.affine_coefficients((9, 7))
  np.testing.assert_allclose(coefficients, (1, 0, 0, 0, 1, 0), atol=1e-12)


def _warp(image, **values):
  return np.asarray(
    image.transform(
      image.size,
      Image.Transform.AFFINE,
      transforms.affine_coefficients(image.size, **values),
      resample=Image.Resampling.BILINEAR,
    )
  )


def test_shift_moves_and_does_not_wrap(rng):
  pixels = rng.integers(1, 256, (6, 8)).astype(np.uint8)
  found = _warp(Image.fromarray(pixels), shift=(2, -1))
  np.testing.assert_array_equal(found[:5, 2:], pixels[1:, :6])
  assert not found[5].any()
  assert not found[:, :2].any()


def test_quarter_turn(rng):
  pixels = rng.integers(0, 256, (7, 7)).astype(np.uint8)
  found = _warp(Image.fromarray(pixels), angle=math.pi / 2)
  # Sampling points are 1e-16 off pixel centres; Pillow truncates there.
  difference = found.astype(int) - np.rot90(pixels)
  assert abs(difference).max() <= 1


def test_coefficients_are_the_stated_map():
  size, shift = (10, 6), (0.5, -0.25)
  angle, scale, aspect, shear = 0.3, 1.2, 0.9, 0.1
  a, b, c, d, e, f = transforms.affine_coefficients(
    size, angle, shift, scale, aspect, shear
  )
  rotation = np.array(
    [
      [math.cos(angle), -math.sin(angle)],
      [math.sin(angle), math.cos(angle)],
    ]
  )
  stretch = np.array([[aspect, shear], [0, 1]])
  centre = np.array(size) / 2
  place = np.array([3.0, 4.0])
  expected = rotation @ stretch @ (place - centre - shift) / scale + centre
  found = np.array([[a, b], [d, e]]) @ place + (c, f)
  # float64.
  np.testing.assert_allclose(found, expected, atol=1e-12)


def test_scale_above_one_enlarges():
  pixels = np.zeros((20, 20), np.uint8)
  pixels[8:12, 8:12] = 255
  assert _warp(Image.fromarray(pixels), scale=1.5).sum() > pixels.sum()


# --- recipes ----------------------------------------------------------------


def test_kinds():
  assert Augment.from_config({}) == Augment()
  assert Augment.from_config({'kind': 'none', 'flip': None}) == Augment()
  deit = Augment.from_config({'kind': 'deit', 'erasing': 0.0})
  assert deit.randaugment == 'rand-m9-mstd0.5-inc1'
  assert (deit.flip, deit.erasing, deit.crop_area) == (0.5, 0.0, (0.08, 1.0))
  affine = Augment.from_config({'kind': 'affine', 'crop_area': [0.5, 1]})
  assert affine.is_affine
  assert affine.crop_area == (0.5, 1.0)


@pytest.mark.parametrize(
  'config, message',
  [
    ({'kind': 'affin'}, 'did you mean affine'),
    ({'rotatoin': 3}, 'did you mean rotation'),
    ({'flip': 1.5}, r'flip=1\.5: out of'),
    ({'flip': 'often'}, "flip='often': out of"),
    ({'rotation': -1}, 'rotation=-1: out of'),
    ({'crop_area': (0.5, 0.2)}, 'crop_area'),
    ({'crop_area': 0.5}, 'two numbers'),
    ({'randaugment': 'rand-m9'}, 'inc1'),
    ({'randaugment': 9}, 'randaugment=9: out of'),
  ],
)
def test_bad_recipes(config, message):
  with pytest.raises(UsageError, match=message):
    Augment.from_config(config)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('kind', ['none', 'affine', 'deit'])
def test_training_arrays(kind, channels, rng):
  preprocessing = Preprocessing(
    (16, 12), (0.5,) * channels, (0.25,) * channels, 0.9
  )
  data = encode(photo(50, 40, rng), 'JPEG')
  augment = Augment.from_config({'kind': kind})
  first, again, other = (
    _training_array(data, preprocessing, augment, np.random.default_rng(seed))
    for seed in (3, 3, 4)
  )
  assert first.shape == (16, 12, channels)
  assert first.dtype == np.float32
  np.testing.assert_array_equal(first, again)
  assert (first != other).any() == (kind != 'none')
  if kind == 'none':
    expected = transforms.evaluation_array(data, preprocessing)
    np.testing.assert_array_equal(first, expected)


@pytest.mark.parametrize(
  'mean, fill',
  [((0.485, 0.456, 0.406), (124, 116, 104)), ((0.25,), 64)],
  ids=['RGB', 'grey'],
)
def test_randaugment_fills_with_the_mean_colour(mean, fill, monkeypatch):
  seen = []
  for name in randaugment.OPERATIONS:
    monkeypatch.setitem(
      randaugment.OPERATIONS,
      name,
      lambda image, draw: seen.append((draw.fill, draw.resample)) or image,
    )
  preprocessing = Preprocessing((6, 6), mean, (0.25,) * len(mean), 1.0)
  augment = Augment(randaugment='rand-m9-p1-inc1')
  pixels = np.zeros((6, 6, 3), np.uint8)
  _training_array(pixels, preprocessing, augment, np.random.default_rng(0))
  # 255 times the mean, rounded; the model's own interpolation.
  assert seen == [(fill, BICUBIC)] * 2


def test_warps_are_drawn_from_their_ranges(monkeypatch):
  """Six draws, each of its own, uniform; scale and aspect in the logarithm."""
  seen = []
  coefficients = transforms.affine_coefficients
  monkeypatch.setattr(
    transforms,
    'affine_coefficients',
    lambda size, **values: seen.append(values) or coefficients(size, **values),
  )
  greatest = {
    'rotation': 30.0,
    'shift': 0.2,
    'scale': 0.3,
    'aspect': 0.4,
    'shear': 0.5,
  }
  augment, rng = Augment(**greatest), np.random.default_rng(0)
  preprocessing = Preprocessing((10, 20), (0.5,), (0.25,), 1.0)
  pixels = np.zeros((10, 20), np.uint8)
  for _ in range(800):
    _training_array(pixels, preprocessing, augment, rng)
  draws = np.array(
    [
      (
        math.degrees(values['angle']) / 30,
        # Shares of the width and of the height.
        values['shift'][0] / (0.2 * 20),
        values['shift'][1] / (0.2 * 10),
        math.log(values['scale']) / 0.3,
        math.log(values['aspect']) / 0.4,
        values['shear'] / 0.5,
      )
      for values in seen
    ]
  )
  # Uniform on -1 to 1: deviation 0.577; four standard errors of 800 draws.
  assert abs(draws).max() <= 1 + 1e-9
  assert abs(draws.mean(0)).max() < 4 * 0.577 / 800**0.5
  assert abs(draws.std(0) - 0.577).max() < 0.04
  correlation = np.corrcoef(draws.T) - np.eye(6)
  assert abs(correlation).max() < 5 / 800**0.5


@pytest.mark.parametrize('field', ['flip', 'erasing'])
def test_rates_of_flip_and_erasing(field, rng):
  pixels = rng.integers(0, 256, (6, 6)).astype(np.uint8)
  preprocessing = Preprocessing((6, 6), (0.5,), (0.25,), 1.0)
  plain = _training_array(pixels, preprocessing, Augment(), rng)
  augment = Augment(**{field: 0.25})
  changed = [
    (_training_array(pixels, preprocessing, augment, rng) != plain).any()
    for _ in range(1000)
  ]
  # Binomial: standard deviation 0.0137; four of them.
  assert abs(np.mean(changed) - 0.25) < 0.055


def test_flip_mirrors(rng):
  pixels = rng.integers(0, 256, (6, 6)).astype(np.uint8)
  preprocessing = Preprocessing((6, 6), (0.5,), (0.25,), 1.0)
  plain = _training_array(pixels, preprocessing, Augment(), rng)
  flipped = _training_array(pixels, preprocessing, Augment(flip=1.0), rng)
  np.testing.assert_array_equal(flipped, plain[:, ::-1])
