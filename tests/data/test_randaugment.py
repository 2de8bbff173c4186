"""RandAugment against timm's pixels, and the rates of its policy."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.data import randaugment
from lambda_vit_jax.data.randaugment import (
  OPERATIONS,
  Draw,
  Policy,
  draw_patch,
  parse_policy,
)
from tests.support.augment_cases import FILLS, cases

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'augment.npz'
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


def test_the_fifteen_operations(golden):
  assert len(OPERATIONS) == 15
  assert set(golden) == set(OPERATIONS) | {'RGB', 'L'}


@pytest.mark.parametrize('name', OPERATIONS)
def test_pixels_are_timms(golden, name):
  place = 0
  for magnitude, sign, mode, resample in cases(name):
    image = Image.fromarray(golden[mode])
    draw = Draw(magnitude / 10, sign, FILLS[mode], resample)
    found = np.asarray(OPERATIONS[name](image, draw))
    expected = golden[name][place : place + found.size]
    place += found.size
    np.testing.assert_array_equal(
      found.reshape(-1), expected, err_msg=f'{magnitude} {sign} {mode}'
    )
  assert place == len(golden[name])


@pytest.mark.parametrize('mode', FILLS)
def test_posterize_at_its_strongest_is_black(golden, mode):
  image = Image.fromarray(golden[mode])
  draw = Draw(1.0, 1, FILLS[mode], BICUBIC)
  assert not np.asarray(OPERATIONS['Posterize'](image, draw)).any()


def _recording(monkeypatch):
  """Replaces the operations by ones that only note their draws."""
  seen = []

  def recorder(name):
    def operation(image, draw):
      seen.append((name, draw))
      return image

    return operation

  for name in OPERATIONS:
    monkeypatch.setitem(OPERATIONS, name, recorder(name))
  return seen


def test_rates_of_the_policy(golden, monkeypatch):
  seen = _recording(monkeypatch)
  image = Image.fromarray(golden['L'])
  rng = np.random.default_rng(0)
  policy = parse_policy('rand-m9-mstd0.5-inc1')
  number = 3000
  for _ in range(number):
    assert policy(image, rng, fill=7, resample=BICUBIC) is image
  # Binomial of 6000 at 1/2: standard deviation 39; four of them.
  assert abs(len(seen) - number) < 4 * 39
  counts = np.array([[n for n, _ in seen].count(name) for name in OPERATIONS])
  # Each operation: 200 of 6000, standard deviation 14; four and a half.
  assert (abs(counts - 200) < 63).all()
  strengths = np.array([draw.strength for _, draw in seen])
  assert strengths.max() == 1
  inside = strengths[strengths < 1]
  # m9 mstd0.5 above 10 is two deviations: 2.3% of draws, clipped.
  assert 0.012 < np.mean(strengths == 1) < 0.035
  # The mean and deviation of the rest, of a Gaussian cut at +2 deviations.
  assert abs(inside.mean() - 0.897) < 0.004
  assert abs(inside.std() - 0.047) < 0.003
  signs = np.array([draw.sign for _, draw in seen])
  assert abs(signs.mean()) < 4 / np.sqrt(len(signs))
  assert {draw.fill for _, draw in seen} == {7}


def test_decisions_do_not_shift_later_draws(golden, monkeypatch):
  seen = _recording(monkeypatch)
  image = Image.fromarray(golden['L'])
  after = []
  for probability in (0.0, 1.0):
    rng = np.random.default_rng(5)
    policy = Policy(9, 0.5, 2, probability)
    policy(image, rng, fill=0, resample=BICUBIC)
    after.append(rng.random())
  assert after[0] == after[1]
  assert len(seen) == 2


@pytest.mark.parametrize(
  'text, policy',
  [
    ('rand-m9-mstd0.5-inc1', Policy(9, 0.5, 2, 0.5)),
    ('rand-inc1', Policy(10, 0, 2, 0.5)),
    ('rand-m5-n3-p1-inc1', Policy(5, 0, 3, 1)),
  ],
)
def test_policies(text, policy):
  assert parse_policy(text) == policy


@pytest.mark.parametrize(
  'text',
  [
    'rand-m9',
    'augmix-m3',
    'rand-m9-inc0',
    'rand-m11-inc1',
    'rand-x3-inc1',
    'rand-m-inc1',
    'rand-m9-p2-inc1',
  ],
)
def test_malformed_policies(text):
  with pytest.raises(UsageError, match='an example is') as raised:
    parse_policy(text)
  assert text in str(raised.value)


# --- random erasing ---------------------------------------------------------


def _erased(number=400, size=(40, 30)):
  rng = np.random.default_rng(1)
  masks, noise = [], []
  for _ in range(number):
    pixels = np.full((*size, 2), 9.0, np.float32)
    draw_patch(pixels.shape, rng).paste(pixels)
    mask = (pixels != 9).all(-1)
    masks.append(mask)
    noise.append(pixels[mask])
  return np.array(masks), np.concatenate(noise)


def test_erased_is_one_rectangle_of_the_right_sizes():
  masks, _ = _erased()
  rows, columns = masks.any(2), masks.any(1)
  np.testing.assert_array_equal(masks, rows[:, :, None] & columns[:, None, :])
  areas = masks.mean((1, 2))
  # Uniform from 2% to a third; sides are rounded to whole pixels.
  assert areas.min() > 0.01
  assert areas.max() < 0.37
  # Standard error 0.0045; draws that do not fit are the large ones.
  assert 0.15 < areas.mean() < 0.19
  ratios = np.log(rows.sum(1) / columns.sum(1))
  assert abs(ratios).max() < np.log(1 / 0.3) + 0.35
  # Symmetric in height and width but for the image's own proportions.
  assert abs(ratios.mean()) < 0.15


def test_erased_rectangles_have_a_log_uniform_aspect():
  """Height over width, on an image so large that rounding does not matter."""
  rng = np.random.default_rng(2)
  # At most 5% of the image: every draw fits.
  patches = [
    draw_patch((2000, 1000, 1), rng, area=(0.01, 0.05)) for _ in range(300)
  ]
  sides = np.array([patch.noise.shape[:2] for patch in patches], float)
  aspect = np.log(sides[:, 0] / sides[:, 1]) / np.log(1 / 0.3)
  # Uniform in [-1, 1]: deviation 0.577; four standard errors of 300.
  assert abs(aspect).max() < 1.02
  assert abs(aspect.mean()) < 4 * 0.577 / np.sqrt(300)
  assert abs(aspect.std() - 0.577) < 0.06
  areas = sides.prod(axis=1) / 2e6
  assert abs(areas.mean() - 0.03) < 4 * 0.0116 / np.sqrt(300)
  tops = np.array([patch.top for patch in patches]) / (2000 - sides[:, 0])
  lefts = np.array([patch.left for patch in patches]) / (1000 - sides[:, 1])
  for places in (tops, lefts):
    assert abs(places.mean() - 0.5) < 4 * 0.289 / np.sqrt(300)


def test_erased_pixels_are_standard_normal():
  _, noise = _erased()
  # 160,000 numbers: standard errors 0.0025 and 0.0018.
  assert abs(noise.mean()) < 0.01
  assert abs(noise.std() - 1) < 0.01
  correlation = np.corrcoef(noise.T)[0, 1]
  assert abs(correlation) < 0.02


def test_nothing_is_erased_where_nothing_fits():
  patch = draw_patch((1, 1, 3), np.random.default_rng(0))
  assert patch is None or not patch.noise.size


@pytest.mark.parametrize('shape', [(9, 1, 1), (1, 9, 1)])
def test_no_rectangle_is_as_long_as_the_image(shape, rng):
  patches = [draw_patch(shape, rng) for _ in range(50)]
  assert not any(patch and patch.noise.size for patch in patches)


def test_strength_is_clipped(golden, monkeypatch):
  seen = _recording(monkeypatch)
  rng = np.random.default_rng(0)
  policy = Policy(0.0, 1.0, 50, 1.0)
  policy(Image.fromarray(golden['L']), rng, fill=0, resample=BICUBIC)
  strengths = [draw.strength for _, draw in seen]
  assert min(strengths) == 0
  assert max(strengths) <= 1
  assert randaugment.MAX_MAGNITUDE == 10
