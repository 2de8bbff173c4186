"""Stored bytes become the pixels that a viewer shows."""

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import decode, transforms
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.data.decode import UndecodableError
from tests.support.pictures import STORED, encode, photo, tagged

RGB = Preprocessing((8, 8), crop_ratio=1.0)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'])
@pytest.mark.parametrize('channels', [1, 3])
def test_modes(mode, channels, rng):
  grey = rng.integers(0, 2, (5, 4)).astype(np.uint8) * 255
  if mode == 'I;16':
    image = Image.fromarray(grey.astype(np.uint16) * 257)
  else:
    image = Image.fromarray(grey).convert(mode)
  data = encode(image, 'PNG')
  loaded = decode.load(decode.open_image(data), channels)
  pixels = np.asarray(loaded).reshape(5, 4, channels)
  for channel in range(channels):
    np.testing.assert_array_equal(pixels[..., channel], grey)


# A black stroke of which the last pixel is half transparent, on nothing: white
# shows through. Rounded by Pillow: 255 times the share that is not covered.
STROKE = np.array([[0, 255, 255, 128]], np.uint8)
ON_WHITE = [[255, 0, 0, 127]]


def _rgba():
  pixels = np.zeros((1, 4, 4), np.uint8)
  pixels[..., 3] = STROKE
  return Image.fromarray(pixels)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'data',
  [
    encode(_rgba(), 'PNG'),
    encode(_rgba().convert('LA'), 'PNG'),
    encode(_rgba(), 'WEBP', lossless=True, exact=True),
  ],
  ids=['RGBA', 'LA', 'WebP'],
)
def test_what_is_transparent_shows_white(data, channels):
  found = np.asarray(decode.load(decode.open_image(data), channels))
  for channel in range(channels):
    np.testing.assert_array_equal(
      found.reshape(1, 4, channels)[..., channel], ON_WHITE
    )


@pytest.mark.parametrize('mode', ['P', 'L', 'RGB'])
def test_a_transparent_colour_shows_white(mode):
  image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), 'P')
  image.putpalette([10, 10, 10, 200, 200, 200])
  clear = {'P': bytes([0, 255]), 'L': 10, 'RGB': (10, 10, 10)}[mode]
  data = encode(image.convert(mode), 'PNG', transparency=clear)
  loaded = decode.load(decode.open_image(data), 3)
  np.testing.assert_array_equal(
    np.asarray(loaded)[..., 0], [[255, 200], [200, 255]]
  )


def test_cmyk_jpeg(rng):
  data = encode(photo(16, 16, rng).convert('CMYK'), 'JPEG')
  assert decode.load(decode.open_image(data), 3).mode == 'RGB'


@pytest.mark.parametrize('shape', [(4, 5), (4, 5, 1), (4, 5, 3)])
def test_arrays(shape, rng):
  array = rng.integers(0, 256, shape).astype(np.uint8)
  image = decode.open_image(array)
  np.testing.assert_array_equal(np.asarray(image).reshape(shape), array)


def _bomb() -> bytes:
  """A PNG whose header claims 50,000 x 50,000 pixels."""

  def chunk(kind, data):
    body = kind + data
    return (
      struct.pack('>I', len(data)) + body + struct.pack('>I', zlib.crc32(body))
    )

  header = struct.pack('>IIBBBBB', 50_000, 50_000, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(b''))
    + chunk(b'IEND', b'')
  )


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
@pytest.mark.parametrize('share', [0.0, 0.02, 0.3, 0.9])
def test_truncated_files(kind, share, rng):
  data = encode(photo(64, 48, rng), kind)
  data = data[: int(len(data) * share)]
  with pytest.raises(UndecodableError) as raised:
    transforms.evaluation_array(data, RGB)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('data', [b'', b'<html>', _bomb()])
def test_what_is_no_image(data):
  with pytest.raises(UndecodableError):
    transforms.evaluation_array(data, RGB)


def test_postscript_starts_no_program():
  data = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n'
  with pytest.raises(UndecodableError, match='not a known image format'):
    decode.open_image(data)
  assert not {'.eps', '.ps', '.pdf', '.mpg', '.h5'} & set(decode.suffixes())


# --- more than 8 bits -------------------------------------------------------


@pytest.mark.parametrize('bits, warns', [(12, True), (13, False), (16, False)])
def test_few_bits_are_warned_about(bits, warns, caplog):
  decode._warn_of_few_bits.cache_clear()
  values = np.linspace(0, 2**bits - 1, 20).astype(np.uint16).reshape(4, 5)
  image = decode.open_image(encode(Image.fromarray(values), 'PNG'))
  with caplog.at_level(logging.WARNING):
    found = np.asarray(decode.load(image, 1))
  np.testing.assert_array_equal(found, values >> 8)
  assert decode.has_few_bits(image) == warns
  assert ('no value above 4095' in caplog.text) == warns


def _tiff(values):
  return encode(Image.fromarray(np.array(values)), 'TIFF')


@pytest.mark.parametrize('greatest', [1.0, 255.0])
def test_floats_are_scaled_from_one_or_rounded(greatest):
  levels = np.array([[0, 51, 255]])
  data = _tiff((levels * greatest / 255).astype(np.float32))
  found = decode.load(decode.open_image(data), 1)
  np.testing.assert_array_equal(np.asarray(found), levels)


@pytest.mark.parametrize(
  'values, message',
  [
    (np.float32([[-1, 1]]), 'values from -1 to 1 lie neither'),
    (np.float32([[0, 1000]]), 'lie neither in'),
    (np.float32([[0, np.nan]]), 'lie neither in'),
    (np.int32([[0, 1 << 16]]), 'need more than 16 bits'),
    (np.int32([[-1, 5]]), 'need more than 16 bits'),
  ],
)
def test_values_of_no_known_range_are_refused(values, message):
  with pytest.raises(UndecodableError, match=message):
    decode.load(decode.open_image(_tiff(values)), 1)


# --- orientation ------------------------------------------------------------

LOSSLESS = {
  'PNG': {},
  'TIFF': {},
  'WEBP': {'lossless': True},
  'JPEG': {'quality': 95, 'subsampling': 0},
}


@pytest.mark.parametrize('kind', LOSSLESS)
@pytest.mark.parametrize('orientation', STORED)
def test_photographs_are_turned_upright(orientation, kind, rng):
  shown = np.asarray(photo(24, 16, rng))
  data = tagged(shown, orientation, kind, **LOSSLESS[kind])
  image = decode.open_image(data)
  assert decode.shown_size(image) == (24, 16)
  found = np.asarray(decode.load(image, 3)).astype(int)
  # A JPEG of this quality is off by 1.4 grey levels on average; any other
  # orientation by more than 20.
  assert abs(found - shown).mean() < (2 if kind == 'JPEG' else 1e-9)


@pytest.mark.parametrize('kind', ['none', 'affine', 'deit'])
@pytest.mark.parametrize('orientation', STORED)
def test_training_and_evaluation_see_the_same_picture(orientation, kind, rng):
  shown = np.asarray(photo(50, 30, rng))
  plain, turned = (
    encode(Image.fromarray(shown), 'PNG'),
    tagged(shown, orientation),
  )
  augment = Augment.from_config({'kind': kind})

  def seen(data):
    record = {'image': data, 'label': 0, 'index': 0}
    pixels, *_ = augment.training(record, RGB, np.random.default_rng(1))
    return pixels, augment.evaluation(record, RGB)[0]

  for one, other in zip(seen(plain), seen(turned), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('orientation', STORED)
def test_a_crop_of_a_turned_jpeg_is_drafted_alike(orientation, rng):
  """The draft is asked for along the stored axes, the crop along the shown."""
  shown = np.asarray(photo(640, 240, rng))
  data = tagged(shown, orientation, 'JPEG', quality=95)
  box = (100, 60, 500, 180)
  target = Preprocessing((15, 50))
  found = transforms.crop_and_resize(decode.open_image(data), box, target)
  whole = decode.load(decode.open_image(data), 3)
  expected = whole.crop(box).resize((50, 15), Image.Resampling.BICUBIC)
  difference = np.asarray(found, float) - np.asarray(expected, float)
  # JPEG's own reduction by 8 against bicubic from the full size.
  assert abs(difference).mean() < 1.5
  # An eighth is decoded, whichever way it lies.
  image = decode.open_image(data)
  assert decode.load(image, 3, draft_size=(80, 30)).size == (80, 30)


def _exif(tag):
  exif = Image.Exif()
  exif[0x0112] = tag
  return exif


@pytest.mark.parametrize(
  'exif', [_exif(0), _exif(9), b'Exif\x00\x00no tags at all']
)
@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_a_senseless_orientation_is_none(exif, kind, rng):
  shown = photo(6, 4, rng)
  data = encode(shown, kind, exif=exif)
  found = decode.load(decode.open_image(data), 3)
  plain = decode.load(decode.open_image(encode(shown, kind)), 3)
  np.testing.assert_array_equal(np.asarray(found), np.asarray(plain))
