"""Read folders of images and masks: `DIR/{train,val|test}/{images,masks}/NAME`.

ADE20k is read as unpacked: `DIR/{images,annotations}/training/NAME` and so on.
"""

import itertools
from collections.abc import Mapping

from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.files import user_path
from lambda_vit_jax.data.sources.dataset import Dataset
from lambda_vit_jax.data.sources.image_folder import (
  TEST_NAMES,
  FolderSource,
  find_images,
)

CLASSES = 'classes.txt'
"""Optional file with one class name per line, in the order of the indices."""

_TRAIN = ('train', 'training')
_MASKS = ('masks', 'annotations')


def open_segmentation_folder(
  directory: str, num_classes: int | None
) -> Dataset:
  """Opens a folder of images, each with a PNG of class indices.

  Args:
    directory: holds `train` and one of `TEST_NAMES`, the first that exists,
      each with `images` and `masks`; or `images` and `masks`, each with these
      splits. `training` and `annotations` are accepted too. Images may lie in
      subfolders; a mask has the path of its image and ends in `.png`.
    num_classes: None if `classes.txt` names them.

  Raises:
    DataError: something is missing or empty, an image has no mask, or the
      number of classes is unknown or differs from the number of names.
  """
  root = user_path(directory)
  train, test = _parts(root, _TRAIN), _parts(root, TEST_NAMES)
  if train is None or test is None:
    raise DataError(
      f'segmentation_folder: {root} must hold train/images, train/masks, '
      'val/images and val/masks (or test instead of val)'
    )
  train_source, train_left_out = _open_split(root, *train[1:])
  test_source, test_left_out = _open_split(root, *test[1:])
  return Dataset(
    name=f'segmentation_folder:{directory}',
    class_names=_class_names(root, num_classes),
    train=train_source,
    test=test_source,
    splits=(train[0], test[0]),
    left_out=(train_left_out, test_left_out),
  )


def _parts(
  root: epath.Path, splits: tuple[str, ...]
) -> tuple[str, epath.Path, epath.Path] | None:
  """The first split that exists: its name, folder of images and of masks."""
  for split, masks in itertools.product(splits, _MASKS):
    for order in ((split, '{}'), ('{}', split)):
      images, of_masks = (
        root / order[0].format(kind) / order[1].format(kind)
        for kind in ('images', masks)
      )
      if images.is_dir() and of_masks.is_dir():
        return split, images, of_masks
  return None


def _class_names(root: epath.Path, num_classes: int | None) -> tuple[str, ...]:
  path = root / CLASSES
  if not path.exists():
    if num_classes is None:
      raise DataError(
        f'segmentation_folder: {root} has no {CLASSES}; write one name a line '
        'there (a run also takes --config.segment.num_classes)'
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
  twice = next((name for name in names if names.count(name) > 1), None)
  if twice is not None:
    raise DataError(
      f'segmentation_folder: {path} names the class {twice!r} twice; give each '
      'a name of its own'
    )
  if num_classes not in (None, len(names)) or not names:
    raise DataError(
      f'segmentation_folder: {path} names {len(names)} classes, '
      f'config.segment.num_classes is {num_classes}; make them agree'
    )
  return names


def _open_split(
  root: epath.Path, images: epath.Path, masks: epath.Path
) -> tuple[FolderSource, Mapping[str, int]]:
  """Returns the split, and by ending the files that are not read."""
  found = find_images(images)
  if not found.images:
    raise DataError(
      f'segmentation_folder: {images} holds no image of a format that is read, '
      'such as PNG, JPEG or WebP'
    )
  stored = find_images(masks)
  mask_names = [f'{name.rpartition(".")[0]}.png' for name in found.images]
  missing = sorted(set(mask_names) - set(stored.images))
  if missing:
    raise DataError(
      f'segmentation_folder: {masks / missing[0]} is missing, and '
      f'{len(missing) - 1} more; every image needs a mask of its name'
    )
  left_out = dict(found.left_out)
  unused = len(set(stored.images) - set(mask_names))
  if unused:
    left_out['masks without an image'] = unused
  where, masks_where = images.relative_to(root), masks.relative_to(root)
  source = FolderSource(
    root=str(root),
    files=tuple(f'{where}/{name}' for name in found.images),
    mask_files=tuple(f'{masks_where}/{name}' for name in mask_names),
  )
  return source, left_out
