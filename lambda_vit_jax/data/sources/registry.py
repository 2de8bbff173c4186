"""Open a data set by name, the value of `data.source`."""

import os
from collections.abc import Sequence

from etils import epath

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.files import user_path
from lambda_vit_jax.data.sources.dataset import Dataset

SOURCES = ('digits', 'image_folder:DIR', 'idx_folder:DIR', 'tfds:NAME')
"""The forms that `open_dataset` accepts."""


def open_dataset(source: str, cache_dir: str | None = None) -> Dataset:
  """Opens one of the `SOURCES`.

  Args:
    source: `digits`, `image_folder:DIR`, `idx_folder:DIR` or `tfds:NAME`.
    cache_dir: where prepared data is kept; by default `lambda_vit_jax` in
      `$XDG_CACHE_HOME` or in `~/.cache`.

  Returns:
    The data set. Only file names, headers and small files are read.

  Raises:
    UsageError: `source` has none of these forms.
    DataError: the data is missing, inconsistent or unreadable.
  """
  kind, where = check_source(source)
  # Each kind has slow imports of its own; load only those needed.
  if kind == 'digits':
    from lambda_vit_jax.data.sources.digits import open_digits

    return open_digits(_cache_dir(cache_dir))
  if kind == 'image_folder':
    from lambda_vit_jax.data.sources.image_folder import open_image_folder

    return open_image_folder(where)
  if kind == 'idx_folder':
    from lambda_vit_jax.data.sources.idx_folder import open_idx_folder

    return open_idx_folder(where)
  from lambda_vit_jax.data.sources.tfds import open_tfds

  return open_tfds(where, _cache_dir(cache_dir))


def check_source(source: str) -> tuple[str, str]:
  """Splits one of the `SOURCES` into kind and argument; opens nothing.

  Raises:
    UsageError: `source` has none of these forms.
  """
  masks = source.partition(':')[0] == 'segmentation_folder'
  hint = '; masks need task=segment' if masks else ''
  return _split(source, SOURCES, hint=hint)


def _split(
  source: str, forms: Sequence[str], rule: str = '', hint: str = ''
) -> tuple[str, str]:
  """Splits `KIND` or `KIND:WHERE`, if it has one of the forms."""
  kind, colon, where = source.partition(':')
  for form in forms:
    known, argument, _ = form.partition(':')
    if kind == known and bool(where) == bool(argument) == bool(colon):
      return kind, where
  local = source and '://' not in source
  if not hint and local and user_path(source).is_dir():
    folder = 'image_folder' if forms is SOURCES else 'segmentation_folder'
    hint = f'; did you mean {folder}:{source}?'
  raise UsageError(
    f'data.source={source!r}: {rule}must be one of {", ".join(forms)}{hint}'
  )


MASK_SOURCES = ('digits', 'segmentation_folder:DIR', 'tfds:NAME')
"""The forms that `open_masks` accepts."""


def open_masks(source: str, num_classes: int | None = None) -> Dataset:
  """Opens one of the `MASK_SOURCES`: images with a class per pixel.

  Args:
    source: `digits` (placed on textures), `segmentation_folder:DIR` or
      `tfds:NAME`.
    num_classes: None if the data set records it.

  Raises:
    UsageError: `source` has none of these forms.
    DataError: the data is missing, inconsistent or unreadable.
  """
  kind, where = check_masks(source)
  if kind == 'digits':
    from lambda_vit_jax.data.sources.digit_scenes import open_digit_scenes

    return open_digit_scenes(num_classes)
  if kind == 'segmentation_folder':
    from lambda_vit_jax.data.sources.mask_folder import open_segmentation_folder

    return open_segmentation_folder(where, num_classes)
  from lambda_vit_jax.data.sources.tfds import open_tfds_masks

  return open_tfds_masks(where, num_classes)


def check_masks(source: str) -> tuple[str, str]:
  """`check_source` for the `MASK_SOURCES`."""
  return _split(source, MASK_SOURCES, 'with task=segment it ')


def _cache_dir(cache_dir: str | None) -> epath.Path:
  if cache_dir:
    return user_path(cache_dir)
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return user_path(home) / 'lambda_vit_jax'
