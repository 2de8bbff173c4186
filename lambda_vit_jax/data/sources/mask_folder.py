"""Read folders of images and masks: `DIR/{train,val|test}/{images,masks}/NAME`.

ADE20k is read as unpacked: `DIR/{images,annotations}/training/NAME` and so on.
"""

import itertools

from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.sources.dataset import Dataset
from lambda_vit_jax.data.sources.image_folder import (
  SUFFIXES,
  FolderSource,
  image_names,
)

CLASSES = 'classes.txt'
"""Optional file with one class name per line, in the order of the indices."""

_TRAIN = ('train', 'training')
_TEST = ('val', 'validation', 'test')
_MASKS = ('masks', 'annotations')


def open_segmentation_folder(
  directory: str, num_classes: int | None
) -> Dataset:
  """Opens a folder of images, each with a PNG of class indices.

  Args:
    directory: holds `train` and one of `val` and `test` (`val` if both
      exist), each with `images` and `masks`; or `images` and `masks`, each
      with these splits. `training`, `validation` and `annotations` are
      accepted too. A mask has the name of its image and ends in `.png`.
    num_classes: None if `classes.txt` names them.

  Raises:
    DataError: something is missing or empty, an image has no mask, or the
      number of classes is unknown or differs from the number of names.
  """
  root = epath.Path(directory).expanduser()
  train, test = _parts(root, _TRAIN), _parts(root, _TEST)
  if not train or not test:
    raise DataError(
      f'segmentation_folder: {root} must hold train/images, train/masks, '
      'val/images and val/masks (or test instead of val)'
    )
  return Dataset(
    name=f'segmentation_folder:{directory}',
    class_names=_class_names(root, num_classes),
    train=_open_split(root, *train),
    test=_open_split(root, *test),
  )


def _parts(root: epath.Path, splits: tuple[str, ...]) -> tuple[epath.Path, ...]:
  """Folders of images and masks of the first split that exists, or ()."""
  for split, masks in itertools.product(splits, _MASKS):
    for order in ((split, '{}'), ('{}', split)):
      found = tuple(
        root / order[0].format(kind) / order[1].format(kind)
        for kind in ('images', masks)
      )
      if all(path.is_dir() for path in found):
        return found
  return ()


def _class_names(root: epath.Path, num_classes: int | None) -> tuple[str, ...]:
  path = root / CLASSES
  if not path.exists():
    if num_classes is None:
      raise DataError(
        f'segmentation_folder: {root} has no {CLASSES}; write one name a line '
        'there, or set segment.num_classes'
      )
    return tuple(map(str, range(num_classes)))
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except UnicodeDecodeError as error:
    raise DataError(
      f'segmentation_folder: {path} is no text in UTF-8 ({error.reason}); save '
      'it as UTF-8'
    ) from error
  names = tuple(filter(None, map(str.strip, lines)))
  if num_classes not in (None, len(names)) or not names:
    raise DataError(
      f'segmentation_folder: {path} names {len(names)} classes, '
      f'segment.num_classes is {num_classes}; make them agree'
    )
  return names


def _open_split(
  root: epath.Path, images: epath.Path, masks: epath.Path
) -> FolderSource:
  names = image_names(images)
  if not names:
    raise DataError(
      f'segmentation_folder: {images} holds no image '
      f'({", ".join("*" + suffix for suffix in SUFFIXES)})'
    )
  stored = {path.name for path in masks.iterdir()}
  mask_names = [f'{name.rpartition(".")[0]}.png' for name in names]
  missing = [name for name in mask_names if name not in stored]
  if missing:
    raise DataError(
      f'segmentation_folder: {masks / missing[0]} is missing, and '
      f'{len(missing) - 1} more; every image needs a mask of its name'
    )
  where, masks_where = images.relative_to(root), masks.relative_to(root)
  return FolderSource(
    root=str(root),
    files=tuple(f'{where}/{name}' for name in names),
    mask_files=tuple(f'{masks_where}/{name}' for name in mask_names),
  )
