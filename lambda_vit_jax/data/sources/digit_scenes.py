"""Handwritten digits on textures with exact masks: `digits` for segmentation.

For tests and smoke runs: scikit-learn's 1,797 handwritten digits, each enlarged
twice and placed at random on a random texture; training digits in several
scenes each. Class 0 is the texture, class d + 1 the ink of digit d.
"""

import dataclasses
import functools

import numpy as np
from sklearn import datasets

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.data.sources.dataset import Dataset, Record

SIDE = 24
"""Height and width of a scene."""

_DIGIT = 16
# Less ink than this counts as texture; low enough to keep thin strokes whole.
_INK = 0.35
# Scenes of each training digit, so that position carries no information.
_SCENES = 8
# The digits from here on were written by other people.
_FIRST_TEST = 1437


@dataclasses.dataclass(frozen=True)
class DigitScenes:
  """One split; scenes are made on demand, and are always the same.

  Attributes:
    split: its name.
    places: indices of its digits in scikit-learn's data set.
    scenes: scenes of each digit; the first of all digits, then the second, …
  """

  split: str
  places: tuple[int, ...]
  scenes: int = 1

  def __len__(self) -> int:
    return len(self.places) * self.scenes

  def __getitem__(self, index: int) -> Record:
    scene, number = divmod(index, len(self.places))
    if not 0 <= scene < self.scenes:
      raise IndexError(index)
    place = self.places[number]
    images, classes = _digits()
    # RandomState's stream never changes, Generator's may (NEP 19).
    rng = np.random.RandomState(place + scene * len(images))
    ink = np.zeros((SIDE, SIDE))
    top, left = rng.randint(0, SIDE - _DIGIT + 1, 2)
    ink[top : top + _DIGIT, left : left + _DIGIT] = images[place]
    colour = rng.uniform(0.8, 1.0)
    image = (1 - ink) * texture(rng) + ink * colour
    mask = np.where(ink > _INK, 1 + classes[place], 0)
    return Record(
      image=np.rint(255 * image).astype(np.uint8),
      label=mask.astype(np.uint8),
      index=index,
    )

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """`[len(self)]` zeros: a scene has a mask instead of a class."""
    return np.zeros(len(self), np.int32)

  def describe(self, index: int) -> str:
    return f'digits {self.split}, scene {index}'


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
  """Ink from 0 to 1, `[1797, 16, 16]` float64, and the classes."""
  found = datasets.load_digits()
  # Each pixel of 8 x 8 becomes 2 x 2, interpolated halfway to the next.
  steps = (np.arange(_DIGIT) + 0.5) / 2 - 0.5
  weights = np.maximum(0, 1 - np.abs(steps[:, None] - np.arange(8)))
  weights /= weights.sum(axis=1, keepdims=True)
  ink = weights @ (found.images / 16) @ weights.T
  return ink, found.target.astype(int)


def texture(rng: np.random.RandomState) -> np.ndarray:
  """Random waves and noise, `[SIDE, SIDE]` in [0, 0.5]."""
  rows, columns = np.mgrid[:SIDE, :SIDE]
  waves = np.zeros((SIDE, SIDE))
  for _ in range(3):
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    length = rng.uniform(3, 12)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    waves += np.sin(2 * np.pi * along / length + phase)
  grain = rng.uniform(-1, 1, (SIDE, SIDE))
  return np.clip(0.25 + 0.06 * waves + 0.05 * grain, 0, 0.5)


def open_digit_scenes(num_classes: int | None = None) -> Dataset:
  """Opens the scenes of all digits, or of those below `num_classes - 1`.

  Raises:
    UsageError: not 2 to 11 classes.
  """
  number = 11 if num_classes is None else num_classes
  if not 2 <= number <= 11:
    raise UsageError(
      f'config.segment.num_classes={number}: scenes of digits have 2 to 11 '
      'classes, the background and a digit each'
    )
  classes = _digits()[1]
  used = np.flatnonzero(classes < number - 1)
  names = ('background', *map(str, range(number - 1)))
  train, test = used[used < _FIRST_TEST], used[used >= _FIRST_TEST]
  return Dataset(
    'digits',
    names,
    DigitScenes('train', tuple(train.tolist()), _SCENES),
    DigitScenes('test', tuple(test.tolist())),
  )
