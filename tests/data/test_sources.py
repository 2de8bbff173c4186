"""Data sets: what is read, and one clear line for each kind of bad input."""

import gzip
import io
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.data import decode
from lambda_vit_jax.data.sources import tfds as tfds_lib
from lambda_vit_jax.data.sources.dataset import split_holdout
from lambda_vit_jax.data.sources.registry import open_dataset, open_masks


def _png(pixels) -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8)).save(file, 'PNG')
  return file.getvalue()


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def digits(cache):
  return open_dataset('digits', cache)


# --- digits -----------------------------------------------------------------


@pytest.mark.parametrize('split', ['train', 'test'])
def test_digits_are_scikit_learns(digits, split):
  assert (len(digits.train), len(digits.test)) == (1437, 360)
  assert digits.class_names == tuple('0123456789')
  original = load_digits()
  rows = split_holdout(original.target, 360)[split == 'test']
  source = getattr(digits, split)
  np.testing.assert_array_equal(source.labels, original.target[rows])
  for index in (0, 7, len(rows) - 1):
    record = source[index]
    pixels = np.asarray(Image.open(io.BytesIO(record['image'])))
    expected = np.round(original.images[rows[index]] * 255 / 16)
    np.testing.assert_array_equal(pixels, expected)
    assert record['label'] == original.target[rows[index]]
    assert record['index'] == index


def test_digits_test_split_is_stratified(digits):
  share = 360 / 1797
  total = np.bincount(digits.train.labels) + np.bincount(digits.test.labels)
  # Largest remainder: no class is off its share by a whole image.
  assert (abs(np.bincount(digits.test.labels) - share * total) < 1).all()


def test_digits_are_prepared_once(cache, digits):
  files = {p: p.stat().st_mtime_ns for p in _files(cache)}
  assert not [p for p in files if 'unfinished' in str(p)]
  again = open_dataset('digits', cache)
  assert again.train[3] == digits.train[3]
  assert {p: p.stat().st_mtime_ns for p in _files(cache)} == files


def test_digits_go_to_the_xdg_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  open_dataset('digits')
  assert [p.name for p in tmp_path.iterdir()] == ['lambda_vit_jax']


def test_digits_prepared_by_two_processes_at_once(tmp_path):
  program = (
    'import sys\n'
    'from lambda_vit_jax.data.sources.registry import open_dataset\n'
    'd = open_dataset("digits", sys.argv[1])\n'
    'print(len(d.train), "tensorflow" in sys.modules)\n'
  )
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', program, str(tmp_path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  for process in processes:
    output, errors = process.communicate()
    # Nothing but our line: TFDS's reports are silenced.
    assert output == '1437 False\n', errors
  assert [p.name for p in (tmp_path / 'digits').iterdir()] == ['digits']


def test_damaged_digits_name_the_folder(tmp_path):
  open_dataset('digits', str(tmp_path))
  (file,) = (p for p in _files(tmp_path) if 'train.array_record' in p.name)
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(DataError, match=r'delete .*digits/1') as raised:
    _ = open_dataset('digits', str(tmp_path)).train[0]
  _is_one_line(raised.value)


def test_unwritable_cache_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(DataError, match='XDG_CACHE_HOME') as raised:
    open_dataset('digits', str(tmp_path / 'file'))
  _is_one_line(raised.value)


def test_sources_can_be_pickled(digits):
  assert pickle.loads(pickle.dumps(digits.train))[5] == digits.train[5]


# --- holdout ----------------------------------------------------------------


@given(
  labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
  share=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_holdout_is_a_stratified_partition(labels, share):
  labels = np.array(labels)
  number = round(share * len(labels))
  train, held = split_holdout(labels, number)
  assert len(held) == number
  np.testing.assert_array_equal(
    np.sort(np.concatenate([train, held])), np.arange(len(labels))
  )
  assert (np.diff(train) > 0).all()
  assert (np.diff(held) > 0).all()
  counts = np.bincount(labels)
  expected = counts * number / len(labels)
  # Largest remainder; the term is rounding of the quotient.
  assert (
    abs(np.bincount(labels[held], minlength=len(counts)) - expected) < 1 + 1e-9
  ).all()
  again = split_holdout(labels, number)
  np.testing.assert_array_equal(again[1], held)


@pytest.mark.parametrize('number', [-1, 4])
def test_holdout_out_of_range(number):
  with pytest.raises(UsageError, match='holdout_images'):
    split_holdout(np.zeros(3, int), number)


# --- names ------------------------------------------------------------------


@pytest.mark.parametrize(
  'source', ['digit', 'image_folder', 'idx_folder:', 'tfds', '', 'digits:x']
)
def test_unknown_source_lists_the_known(source):
  with pytest.raises(UsageError, match='image_folder:DIR') as raised:
    open_dataset(source)
  assert raised.value.exit_code == 2


@pytest.mark.parametrize(
  'open_one, kind',
  [(open_dataset, 'image_folder'), (open_masks, 'segmentation_folder')],
)
def test_a_folder_alone_is_offered_as_one_of_images(open_one, kind, tmp_path):
  with pytest.raises(UsageError, match=f'did you mean {kind}:{tmp_path}'):
    open_one(str(tmp_path))


@pytest.mark.parametrize(
  'open_one, kind',
  [(open_dataset, 'image_folder'), (open_masks, 'segmentation_folder')],
  ids=['image_folder', 'segmentation_folder'],
)
def test_a_url_is_no_folder(open_one, kind):
  with pytest.raises(DataError, match='is a URL; download it') as raised:
    open_one(f'{kind}:https://host/photos')
  _is_one_line(raised.value)


# --- image folders ----------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  for split, number in (('train', 3), ('val', 2)):
    for label, name in enumerate(('cat', 'dog')):
      path = tmp_path / split / name
      path.mkdir(parents=True)
      for index in range(number):
        pixels = np.full((4, 5, 3), 10 * label + index)
        (path / f'{index}.png').write_bytes(_png(pixels))
      (path / 'notes.txt').write_text('ignored')
  return tmp_path


def test_image_folder(folder):
  dataset = open_dataset(f'image_folder:{folder}')
  assert dataset.class_names == ('cat', 'dog')
  assert dataset.num_classes == 2
  np.testing.assert_array_equal(dataset.train.labels, [0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(dataset.test.labels, [0, 0, 1, 1])
  record = dataset.train[4]
  assert record['image'] == (folder / 'train/dog/1.png').read_bytes()
  assert (record['label'], record['index']) == (1, 4)
  assert dataset.train.describe(4) == str(folder / 'train/dog/1.png')


def test_image_folder_takes_test_and_any_case(folder):
  os.rename(folder / 'val', folder / 'test')
  os.rename(folder / 'train/cat/0.png', folder / 'train/cat/0.JPG')
  dataset = open_dataset(f'image_folder:{folder}')
  assert (len(dataset.train), len(dataset.test)) == (6, 4)


@pytest.mark.parametrize(
  'ending',
  ['.webp', '.bmp', '.tif', '.TIFF', '.gif', '.jfif', '.jpe', '.ppm', '.jp2'],
)
def test_image_folder_reads_what_pillow_reads(folder, ending):
  path = folder / f'train/dog/3{ending}'
  Image.fromarray(np.full((4, 5, 3), 13, np.uint8)).save(path)
  dataset = open_dataset(f'image_folder:{folder}')
  assert dataset.train.describe(6) == str(path)
  image = decode.load(decode.open_image(dataset.train[6]['image']), 3)
  # JPEG is off by a level.
  np.testing.assert_allclose(np.asarray(image, int), 13, atol=1)


def test_image_folder_walks_subfolders_and_counts_what_it_leaves_out(folder):
  for name in ('train/cat/z/y/4.png', 'train/cat/a/5.png', 'val/dog/b/6.png'):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(np.zeros((4, 5, 3))))
  (folder / 'train/cat/a/boxes.CSV').write_text('')
  (folder / 'train/cat/a/.hidden.png').write_text('')
  (folder / 'train/dog/README').write_text('')
  (folder / 'val/stray.jpg').write_text('')
  dataset = open_dataset(f'image_folder:{folder}')
  assert [dataset.train.files[k] for k in range(6)] == [
    'cat/0.png',
    'cat/1.png',
    'cat/2.png',
    'cat/a/5.png',
    'cat/z/y/4.png',
    'dog/0.png',
  ]
  assert (
    dataset.train[4]['image'] == (folder / 'train/cat/z/y/4.png').read_bytes()
  )
  np.testing.assert_array_equal(dataset.train.labels, [0] * 5 + [1] * 3)
  np.testing.assert_array_equal(dataset.test.labels, [0, 0, 1, 1, 1])
  assert dataset.left_out == (
    {'.txt': 2, 'hidden': 1, '.csv': 1, 'without an ending': 1},
    {'.txt': 2, '.jpg in no class': 1},
  )
  assert dataset.summary() == (
    '8 images to train on (train), 5 to test on (val), 2 classes; train '
    'without 2 .txt, 1 hidden, 1 .csv, 1 without an ending, val without 2 '
    '.txt, 1 .jpg in no class'
  )


def test_a_link_that_leads_back_up_is_told(folder):
  (folder / 'train/cat/up').symlink_to(folder / 'train')
  with pytest.raises(DataError, match='remove links that lead back') as raised:
    open_dataset(f'image_folder:{folder}')
  _is_one_line(raised.value)


@pytest.mark.parametrize(
  'others, read',
  [
    (['valid'], 'valid'),
    (['validation', 'test'], 'validation'),
    (['test', 'val'], 'val'),
  ],
)
def test_names_of_the_held_out_split(folder, others, read):
  os.rename(folder / 'val', folder / others[0])
  for other in others[1:]:
    shutil.copytree(folder / others[0], folder / other)
  dataset = open_dataset(f'image_folder:{folder}')
  assert dataset.splits == ('train', read)
  assert dataset.test.root == str(folder / read)
  assert f'({read})' in dataset.summary()


def _remove_class_images(folder):
  for file in (folder / 'train/dog').glob('*.png'):
    file.unlink()


def _rename(before, after):
  return lambda folder: os.rename(folder / before, folder / after)


def _empty_train(folder):
  for file in sorted((folder / 'train').rglob('*'), reverse=True):
    file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize(
  'damage, message',
  [
    (_remove_class_images, r'train/dog has no image \(of 1 files none is'),
    (_rename('train/dog', 'train/fox'), 'only train has fox.*dog'),
    (
      _rename('val', 'vali'),
      'one of val, valid, validation, test; it holds train, vali',
    ),
    (_rename('train', 'training'), 'must hold a folder train'),
    (_empty_train, 'train is empty'),
  ],
)
def test_bad_image_folders(folder, damage, message):
  damage(folder)
  with pytest.raises(DataError, match=message) as raised:
    open_dataset(f'image_folder:{folder}')
  _is_one_line(raised.value)


def test_missing_image_folder(tmp_path):
  with pytest.raises(DataError, match='nowhere is not a folder'):
    open_dataset(f'image_folder:{tmp_path}/nowhere')


def test_image_that_vanishes_is_named(folder):
  dataset = open_dataset(f'image_folder:{folder}')
  (folder / 'train/cat/1.png').unlink()
  with pytest.raises(DataError, match=r'train/cat/1\.png'):
    _ = dataset.train[1]


# --- idx --------------------------------------------------------------------

_IDX_NAMES = tuple(
  f'{split}-{kind}-ubyte.gz'
  for split in ('train', 't10k')
  for kind in ('images-idx3', 'labels-idx1')
)


def _idx(array) -> bytes:
  array = np.asarray(array, np.uint8)
  header = bytes([0, 0, 8, array.ndim]) + struct.pack(
    f'>{array.ndim}I', *array.shape
  )
  return header + array.tobytes()


@pytest.fixture
def idx_arrays(rng):
  return (
    rng.integers(0, 256, (6, 4, 5)),
    np.array([0, 1, 2, 2, 1, 0]),
    rng.integers(0, 256, (3, 4, 5)),
    np.array([2, 0, 1]),
  )


def _write_idx(folder, arrays):
  folder.mkdir(exist_ok=True)
  for name, array in zip(_IDX_NAMES, arrays, strict=True):
    data = array if isinstance(array, bytes) else _idx(array)
    (folder / name).write_bytes(gzip.compress(data))
  return f'idx_folder:{folder}'


@pytest.mark.parametrize('name, first', [('train', 0), ('test', 2)])
def test_idx_folder(tmp_path, idx_arrays, name, first):
  dataset = open_dataset(_write_idx(tmp_path, idx_arrays))
  assert dataset.class_names == ('0', '1', '2')
  split = getattr(dataset, name)
  images, labels = idx_arrays[first : first + 2]
  assert len(split) == len(labels)
  np.testing.assert_array_equal(split.labels, labels)
  np.testing.assert_array_equal(split[1]['image'], images[1])
  assert split[1]['label'] == labels[1]
  assert 'image 2' in split.describe(2)


def test_idx_folder_of_fashion_knows_its_classes(tmp_path, idx_arrays):
  images, _, test_images, test_labels = idx_arrays
  arrays = (
    np.concatenate([images, images]),
    np.arange(12) % 10,
    test_images,
    test_labels,
  )
  dataset = open_dataset(_write_idx(tmp_path / 'fashion-mnist', arrays))
  assert dataset.class_names[9] == 'Ankle boot'


@pytest.mark.parametrize(
  'place, change, message',
  [
    (0, lambda a: a[:5], '5 images but .* 6 labels'),
    (0, lambda a: _idx(a)[:-3], 'fewer bytes'),
    (0, lambda a: _idx(a) + b'x', 'more bytes'),
    (0, lambda a: b'', 'no idx file'),
    (0, lambda a: b'<html>not found</html>', 'no idx file'),
    (0, lambda a: _idx(a)[:4] + b'\xff' * 12, 'damaged'),
    (1, lambda a: np.array([0, 1, 3, 3, 1, 0]), 'no image of class 2'),
    (2, lambda a: a[:, :3], '4 x 5 for training but 3 x 5'),
    (3, lambda a: np.array([2, 0, 7]), '3 classes, testing a label 7'),
  ],
)
def test_bad_idx_files(tmp_path, idx_arrays, place, change, message):
  arrays = list(idx_arrays)
  arrays[place] = change(arrays[place])
  source = _write_idx(tmp_path, arrays)
  with pytest.raises(DataError, match=message) as raised:
    open_dataset(source)
  _is_one_line(raised.value)


def test_truncated_and_missing_gz(tmp_path, idx_arrays):
  source = _write_idx(tmp_path, idx_arrays)
  path = tmp_path / _IDX_NAMES[0]
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(DataError, match=r'train-images.*cannot be unpacked'):
    open_dataset(source)
  path.write_bytes(b'no gzip at all')
  with pytest.raises(DataError, match=r'train-images.*cannot be unpacked'):
    open_dataset(source)
  path.unlink()
  with pytest.raises(DataError, match=r'train-images.*is missing'):
    open_dataset(source)


# --- tfds -------------------------------------------------------------------


class TinyShapes(tfds.core.GeneratorBasedBuilder):
  """Colour images with a further feature; `test` carries no labels."""

  VERSION = tfds.core.Version('1.2.0')

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'file_name': tfds.features.Text(),
          'image': tfds.features.Image(),
          'label': tfds.features.ClassLabel(names=['disc', 'square']),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {
      'train': self._generate_examples(6, True),
      'validation': self._generate_examples(4, True),
      'test': self._generate_examples(4, False),
    }

  def _generate_examples(self, number, labelled):
    for key in range(number):
      yield (
        key,
        {
          'file_name': f'{key}.png',
          'image': io.BytesIO(_png(np.full((3, 4, 3), key))),
          'label': key % 2 if labelled else -1,
        },
      )


@pytest.fixture(scope='module')
def tfds_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp('tfds')
  TinyShapes(
    data_dir=str(directory), file_format='array_record'
  ).download_and_prepare()
  return directory


@pytest.mark.parametrize('version', ['', ':1.2.0'])
def test_any_prepared_tfds_set(tfds_dir, tmp_path, monkeypatch, version):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
  dataset = open_dataset(f'tfds:tiny_shapes{version}', str(tmp_path))
  assert dataset.class_names == ('disc', 'square')
  # `test` has no labels, as ImageNet's.
  assert (len(dataset.train), len(dataset.test)) == (6, 4)
  assert dataset.splits == ('train', 'validation')
  assert dataset.test.describe(2) == (
    f'tfds:tiny_shapes{version} validation, record 2'
  )
  record = dataset.train[3]
  assert record['image'] == _png(np.full((3, 4, 3), 3))
  assert record['label'] == 1


def test_labels_of_large_splits_are_cached(tfds_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
  monkeypatch.setattr(tfds_lib, '_CACHED_FROM', 5)
  monkeypatch.setattr(tfds_lib, '_HELD_BYTES', 0)
  for _ in range(2):
    dataset = open_dataset('tfds:tiny_shapes', str(tmp_path))
    np.testing.assert_array_equal(dataset.train.labels, [0, 1] * 3)
    (file,) = _files(tmp_path)
  # The second time they come from the file.
  np.save(file, np.ones(6, np.int32))
  dataset = open_dataset('tfds:tiny_shapes', str(tmp_path))
  np.testing.assert_array_equal(dataset.train.labels, np.ones(6))


@pytest.mark.parametrize('name', ['no_such_set', 'tiny_shapes:9.9.9', 'mnist'])
def test_unprepared_tfds_sets(tfds_dir, tmp_path, monkeypatch, name):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_dir))
  with pytest.raises(DataError, match='TFDS_DATA_DIR') as raised:
    open_dataset(f'tfds:{name}', str(tmp_path))
  _is_one_line(raised.value)


def _files(directory) -> list[pathlib.Path]:
  return [p for p in pathlib.Path(directory).rglob('*') if p.is_file()]


def _is_one_line(error: Exception) -> None:
  assert '\n' not in str(error)
  assert not str(error).endswith('.')


@pytest.mark.parametrize(
  'damage',
  [
    lambda data: b'',
    lambda data: data[:40],
    lambda data: data[:-4],
    lambda data: data.replace(b"'descr'", b"'d]scr\xff"),
    lambda data: data.replace(b'(3,)', b'(2,)'),
    lambda data: data.replace(b'<i4', b'<f4'),
    lambda data: data.replace(b'<i4', b'|O '),
  ],
)
def test_a_damaged_cache_of_labels_is_read_again(tmp_path, damage):
  records = [{'image': b'', 'label': label} for label in (2, 0, 1)]
  path = tmp_path / 'labels' / 'x.npy'

  def split():
    return tfds_lib.TfdsSource('x', records, 'image', 'label', str(path))

  np.testing.assert_array_equal(split().labels, [2, 0, 1])
  whole = path.read_bytes()
  damaged = damage(whole)
  assert damaged != whole
  path.write_bytes(damaged)
  np.testing.assert_array_equal(split().labels, [2, 0, 1])
  assert path.read_bytes() == whole
