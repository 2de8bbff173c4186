"""What a run says of its data before it starts, and what stops it."""

import numpy as np
import pytest

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import first_look
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.data.sources.dataset import Dataset
from tests.support.mask_sources import Source

GREY = Preprocessing((8, 8), (0.5,), (0.5,))
RGB = Preprocessing((16, 24))


@pytest.mark.parametrize(
  'shapes, preprocessing, line',
  [
    (
      [(32, 40, 3)],
      GREY,
      'images of 40 x 32 pixels, RGB, become 8 x 8, grey',
    ),
    (
      [(32, 40, 3), (8, 9)],
      RGB,
      'images of 9 x 8 to 40 x 32 pixels, RGB and grey, become 24 x 16, RGB',
    ),
    ([(8, 8)], GREY, 'images of 8 x 8 pixels, grey, are read as they are'),
    (
      [(8, 8, 3)],
      GREY,
      'images of 8 x 8 pixels, RGB, become 8 x 8, grey',
    ),
  ],
)
def test_what_happens_to_the_images_is_one_line(shapes, preprocessing, line):
  source = Source([(np.zeros(shape, np.uint8), 0) for shape in shapes])
  assert first_look.describe_images(source, preprocessing) == line


def _dataset(masks, classes=2):
  names = tuple(f'c{k}' for k in range(classes))
  records = [
    (np.zeros((2, 2), np.uint8), np.array(mask, np.uint8).reshape(2, 2))
    for mask in masks
  ]
  return Dataset('folder', names, Source(records), Source(records))


@pytest.mark.parametrize(
  'masks, reduce_zero_label, held',
  [
    # Two classes written as 0 and 255: the second would be ignored.
    ([[0, 255, 0, 255], [0, 0, 0, 0]], False, 'hold c0, beside 255 for'),
    ([[255] * 4], False, 'hold none, beside 255 for no class'),
    ([[0, 1, 1, 0]], True, 'hold c0, beside 255 and 0 for no class'),
  ],
)
def test_one_class_beside_ignored_pixels_stops_the_run(
  masks, reduce_zero_label, held
):
  rules = MaskRules(2, reduce_zero_label=reduce_zero_label)
  with pytest.raises(DataError, match=held) as raised:
    first_look.check_classes(_dataset(masks), rules)
  assert '\n' not in str(raised.value)
  assert len(str(raised.value)) <= 300


@pytest.mark.parametrize(
  'masks, warning',
  [
    ([[0, 1, 2, 3]], None),
    ([[0, 1, 255, 3], [2, 2, 2, 2]], None),
    ([[0, 1, 1, 3]], 'no training mask holds the class c2'),
    (
      [[0, 1, 255, 0]],
      'no training mask holds the class c2, c3, but 255 (no class) does',
    ),
    # Nothing is ignored: the score is of what is there.
    ([[0, 0, 0, 0]], 'no training mask holds the class c1, c2, c3'),
  ],
)
def test_classes_in_no_mask_are_named(masks, warning):
  found = first_look.check_classes(_dataset(masks, 4), MaskRules(4))
  assert found == warning


def test_a_sample_of_many_masks_names_no_class(monkeypatch):
  monkeypatch.setattr(first_look, '_MASKS', 2)
  masks = [[0, 1, 1, 0], [2, 2, 2, 2], [0, 1, 1, 0]]
  assert first_look.check_classes(_dataset(masks, 3), MaskRules(3)) is None
  # The last of the spread is looked at as well.
  with pytest.raises(DataError, match='hold none'):
    first_look.check_classes(
      _dataset([[255] * 4, [0, 1, 0, 1], [255] * 4], 2), MaskRules(2)
    )


def test_a_class_out_of_range_is_named_and_no_class_is_missed():
  """Masks of 1 and 2 where there are two classes: 0 and 1 are missing, too."""
  with pytest.raises(DataError, match='holds the class 2, out of range'):
    first_look.check_classes(_dataset([[1, 1, 2, 2]], 2), MaskRules(2))
