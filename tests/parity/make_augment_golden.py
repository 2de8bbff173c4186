"""Write `tests/golden/augment.npz`: timm's augmentations of two images.

  python -m tests.parity.make_augment_golden

Needs the extra `[parity]`. For each operation, magnitude, direction and filter
the file holds the pixels of a colour and a grey image, so that CI can compare
ours with them without PyTorch.
"""

import pathlib
from unittest import mock

import numpy as np
from timm.data import auto_augment

from tests.support.augment_cases import FILLS, cases, images

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'augment.npz'

# Our name: timm's name in its set of increasing severity.
OPERATIONS = {
  'AutoContrast': 'AutoContrast',
  'Equalize': 'Equalize',
  'Invert': 'Invert',
  'Rotate': 'Rotate',
  'Posterize': 'PosterizeIncreasing',
  'Solarize': 'SolarizeIncreasing',
  'SolarizeAdd': 'SolarizeAdd',
  'Color': 'ColorIncreasing',
  'Contrast': 'ContrastIncreasing',
  'Brightness': 'BrightnessIncreasing',
  'Sharpness': 'SharpnessIncreasing',
  'ShearX': 'ShearX',
  'ShearY': 'ShearY',
  'TranslateX': 'TranslateXRel',
  'TranslateY': 'TranslateYRel',
}


def timm_pixels(
  name: str, magnitude: float, sign: int, mode: str, resample: int
) -> np.ndarray:
  """timm's result with the random sign fixed to `sign`."""
  operation = auto_augment.AugmentOp(
    OPERATIONS[name],
    prob=1.0,
    magnitude=magnitude,
    hparams={'img_mean': FILLS[mode], 'interpolation': resample},
  )
  number = 0.0 if sign > 0 else 1.0
  with mock.patch.object(auto_augment.random, 'random', return_value=number):
    return np.asarray(operation(images()[mode]))


def main() -> None:
  """Writes the file."""
  arrays = {mode: np.asarray(image) for mode, image in images().items()}
  for name in OPERATIONS:
    pixels = [timm_pixels(name, *case).reshape(-1) for case in cases(name)]
    arrays[name] = np.concatenate(pixels)
  np.savez_compressed(GOLDEN, **arrays)


if __name__ == '__main__':
  main()
