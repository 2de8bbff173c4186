"""The bundled data set: scikit-learn's 1,797 handwritten digits, 8 x 8.

Prepared once, as ArrayRecord with PNG images, in the user's cache, and read
like any other TFDS data set.
"""

import contextlib
import io
import os
import uuid
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.sources.dataset import Dataset, split_holdout
from lambda_vit_jax.data.sources.tfds import dataset_of_builder

NUM_IMAGES = 1797
NUM_TEST = 360
# Grey levels of the original: counts of set pixels in 4 x 4 blocks.
_MAX_VALUE = 16


class Digits(tfds.core.GeneratorBasedBuilder):
  """Writes the digits with a fixed, stratified split."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Optical recognition of handwritten digits (8 x 8, grey).',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      # The order of the file, so that indices mean the same everywhere.
      disable_shuffling=True,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator]:
    del dl_manager
    # Slow to import, and needed only the first time.
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / _MAX_VALUE)).astype(np.uint8)
    labels = digits.target
    train, test = split_holdout(labels, NUM_TEST)
    return {
      name: self._generate_examples(images[rows], labels[rows])
      for name, rows in (('train', train), ('test', test))
    }

  def _generate_examples(
    self, images: np.ndarray, labels: np.ndarray
  ) -> Iterator:
    for key, (pixels, label) in enumerate(zip(images, labels, strict=True)):
      # An array would be encoded by TensorFlow; a file object is taken as is.
      file = io.BytesIO()
      Image.fromarray(pixels).save(file, 'PNG')
      file.seek(0)
      yield key, {'image': file, 'label': int(label)}


def open_digits(cache_dir: epath.Path) -> Dataset:
  """Opens the digits: 1,437 training and 360 test images, 10 classes.

  Prepares them in `cache_dir/digits` on first use. Several processes may do
  so at once: each writes its own folder and renames it into place; the first
  one wins and the others discard theirs.

  Raises:
    DataError: the cache cannot be written, or is damaged.
  """
  root = cache_dir / 'digits'
  version_dir = root / 'digits' / str(Digits.VERSION)
  if not version_dir.exists():
    _prepare(root, version_dir)
  cure = f'delete {version_dir} to have the digits made again'
  try:
    builder = tfds.builder_from_directory(os.fspath(version_dir))
    dataset = dataset_of_builder('digits', builder, cache_dir, cure)
  # Whatever TFDS raises on damaged files, the remedy is the same.
  except Exception as error:
    raise DataError(
      f'the prepared digits cannot be read ({type(error).__name__}); {cure}'
    ) from error
  found = len(dataset.train) + len(dataset.test)
  if found != NUM_IMAGES:
    raise DataError(
      f'the prepared digits hold {found} images instead of {NUM_IMAGES}; {cure}'
    )
  return dataset


def _prepare(root: epath.Path, version_dir: epath.Path) -> None:
  unfinished = root / f'unfinished-{uuid.uuid4().hex}'
  try:
    unfinished.mkdir(parents=True)
    # TFDS reports to stdout, which belongs to the command that runs.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
      builder = Digits(
        data_dir=os.fspath(unfinished), file_format='array_record'
      )
      builder.download_and_prepare()
    version_dir.parent.mkdir(parents=True, exist_ok=True)
    try:
      epath.Path(builder.data_path).rename(version_dir)
    except OSError:
      # Another process was faster; its copy has the same bytes.
      if not version_dir.exists():
        raise
  except OSError as error:
    raise DataError(
      f'the digits cannot be prepared in {root} ({error.strerror or error}); '
      'make the folder writable or point XDG_CACHE_HOME at another one'
    ) from error
  finally:
    tfds.enable_progress_bar()
    if unfinished.exists():
      unfinished.rmtree()
