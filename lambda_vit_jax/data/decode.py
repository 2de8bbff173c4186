"""Turn stored bytes into grey or RGB images with Pillow, as a viewer shows them.

Cameras' orientation tags are applied, transparent pixels lie on white, and
values of more than 8 bits are scaled to 8. Training, evaluation, `predict` and
`check-data` all decode here.
"""

import contextlib
import functools
import io
import logging
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from lambda_vit_jax.core.errors import DataError

GREY_MODES = ('1', 'L', 'LA', 'I', 'I;16', 'I;16B', 'F')
"""Pillow's modes of images without colour."""

# Formats of Pillow that are not read: EPS starts another program, MPEG is only
# recognised.
_NOT_READ = ('EPS', 'MPEG')
# Those that most files have; some others are recognised by trying.
_TRIED_FIRST = ('JPEG', 'PNG', 'GIF', 'BMP', 'PPM', 'WEBP', 'TIFF')
# A 16-bit file whose values all lie below this holds at most 12 bits.
_TWELVE_BITS = 1 << 12
# Orientations from this on are lying: height and width are exchanged.
_LYING = 5


class UndecodableError(DataError):
  """Bytes that are not an image; the message is the reason."""


@functools.cache
def formats() -> tuple[str, ...]:
  """The formats of image files that are read, by Pillow's names."""
  Image.init()

  def reads(name: str) -> bool:
    factory = Image.OPEN[name][0]
    # A stub only names the library that could read the format.
    is_stub = isinstance(factory, type) and issubclass(
      factory, ImageFile.StubImageFile
    )
    return name not in _NOT_READ and not is_stub

  known = sorted(Image.ID, key=lambda name: name not in _TRIED_FIRST)
  return tuple(filter(reads, known))


@functools.cache
def suffixes() -> tuple[str, ...]:
  """Endings of such files, in lower case, with the dot."""
  read = formats()
  known = Image.registered_extensions().items()
  # Files of several pictures are read by their JPEG part.
  return tuple(ending for ending, name in known if name in (*read, 'MPO'))


def open_image(data: bytes | np.ndarray) -> Image.Image:
  """Opens an encoded image (header only) or wraps a uint8 array.

  Args:
    data: a file of one of the `formats`, or uint8 `[height, width]`,
      `[.., 1]` or `[.., 3]`.

  Raises:
    UndecodableError: not an image, or one that Pillow refuses as too large
      to decode (a decompression bomb).
  """
  with decoding():
    if isinstance(data, np.ndarray):
      return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data)
    return Image.open(io.BytesIO(data), formats=formats())


def orientation(image: Image.Image) -> int:
  """The EXIF orientation of an opened image: 1 (upright) to 8.

  Raises:
    UndecodableError: the pixels, which precede the tag in some formats, are
      damaged.
  """
  if image.format not in ('JPEG', 'MPO'):
    # Pillow turns a TIFF itself as it loads it, and removes the tag.
    with decoding():
      image.load()
  try:
    found = image.getexif().get(ExifTags.Base.Orientation, 1)
  # A damaged tag, which raises almost anything, says nothing.
  except Exception:
    return 1
  return found if found in range(1, 9) else 1


def shown_size(image: Image.Image) -> tuple[int, int]:
  """The (width, height) of an opened image when it is `upright`."""
  # First, as it may load the image, which turns a TIFF.
  lying = orientation(image) >= _LYING
  return image.size[::-1] if lying else image.size


def upright(image: Image.Image) -> Image.Image:
  """The image, decoded, turned as its EXIF orientation says."""
  with decoding():
    image.load()
    return image if orientation(image) == 1 else ImageOps.exif_transpose(image)


def load(
  image: Image.Image, channels: int, draft_size: tuple[int, int] | None = None
) -> Image.Image:
  """Decodes the pixels as grey (1 channel) or RGB (3 channels).

  The image is turned as its EXIF orientation says, transparency shows a white
  background, palettes are looked up. Of 16-bit values the high byte is kept;
  floats are scaled from [0, 1], or rounded where they lie in [0, 255].

  Args:
    image: as `open_image` returned it.
    channels: 1 or 3.
    draft_size: least (width, height) that the caller needs, of the turned
      image. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size.

  Raises:
    UndecodableError: the pixels are damaged, cut short or out of range.
  """
  mode = {1: 'L', 3: 'RGB'}[channels]
  with decoding():
    if draft_size is not None and image.format == 'JPEG':
      lying = orientation(image) >= _LYING
      image.draft(mode, draft_size[::-1] if lying else draft_size)
    image = upright(image)
    if image.mode == mode and not image.has_transparency_data:
      return image
    if image.mode == 'F' or image.mode.startswith('I'):
      image = Image.fromarray(_eight_bits(image))
    if image.has_transparency_data:
      shown = Image.new('RGBA', image.size, 'white')
      shown.alpha_composite(image.convert('RGBA'))
      image = shown
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> np.ndarray:
  """Grey values of 16 bits or floats as uint8 `[height, width]`."""
  values = np.asarray(image)
  least, most = values.min(), values.max()
  if image.mode == 'F':
    if not (least >= 0 and most <= 255):
      raise ValueError(
        f'its values from {least:g} to {most:g} lie neither in [0, 1] nor in '
        '[0, 255]'
      )
    return np.rint(values * (255 if most <= 1 else 1)).astype(np.uint8)
  # Pillow would clip 16-bit values at 255 instead of scaling them.
  if least < 0 or most >= 1 << 16:
    raise ValueError(
      f'its values from {least} to {most} need more than 16 bits'
    )
  if has_few_bits(image):
    _warn_of_few_bits()
  return (values.astype(np.uint32) >> 8).astype(np.uint8)


def has_few_bits(image: Image.Image) -> bool:
  """Whether 16-bit values fill 12 bits at most, and so come out nearly black."""
  if not image.mode.startswith('I'):
    return False
  return 0 < int(np.asarray(image).max()) < _TWELVE_BITS


@functools.cache
def _warn_of_few_bits() -> None:
  """Once: a data set has thousands of them; `check-data` counts them."""
  logging.getLogger(__name__).warning(
    'warning: 16-bit images hold no value above 4095 and come out nearly '
    'black; if they have 12 bits or fewer, scale them to the whole range'
  )


@contextlib.contextmanager
def decoding() -> Iterator[None]:
  """While open, any error of a decoder becomes an `UndecodableError`."""
  try:
    yield
  # Decoders raise almost anything on damaged bytes: OSError,
  # SyntaxError, ValueError, struct.error, bomb errors and warnings.
  except Exception as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    # Pillow's message has the buffer's address, which is no use to a user.
    if isinstance(error, Image.UnidentifiedImageError):
      reason = 'not a known image format'
    raise UndecodableError(reason) from error
