"""`check_data`: what it finds in a folder whose contents are known."""

import io
import json

import numpy as np
import pytest
import rich.console
from PIL import Image

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.check import check_data
from lambda_vit_jax.data.sources.dataset import Dataset
from lambda_vit_jax.data.sources.idx_folder import ArraySource
from lambda_vit_jax.data.sources.registry import open_dataset
from tests.support.pictures import tagged


def _save(path, array, mode=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(np.asarray(array, np.uint8))
  image.convert(mode or image.mode).save(path)


@pytest.fixture
def folder(tmp_path, rng):
  colour = rng.integers(0, 256, (4, 6, 3))
  _save(tmp_path / 'train/cat/a.png', colour)
  _save(tmp_path / 'train/cat/b.png', colour)
  _save(tmp_path / 'train/cat/c.png', np.full((10, 2, 3), 51))
  _save(tmp_path / 'train/dog/d.png', np.full((3, 3), 204))
  (tmp_path / 'train/dog/e.jpg').write_bytes(b'no image')
  _save(tmp_path / 'test/cat/f.png', colour)
  _save(tmp_path / 'test/dog/g.png', np.full((5, 5), 102))
  _save(tmp_path / 'test/dog/h.png', np.full((5, 5), 0), 'RGBA')
  return tmp_path, colour


def test_findings(folder):
  root, colour = folder
  calls = []
  report = check_data(
    f'image_folder:{root}', progress=lambda *call: calls.append(call)
  )
  assert calls[-1] == (8, 8)
  assert report.class_names == ('cat', 'dog')
  train, test = report.train, report.test
  assert (train.num_images, train.class_counts) == (5, (3, 2))
  assert (test.num_images, test.class_counts) == (3, (1, 2))
  assert train.heights == (3, 4, 10)
  assert train.widths == (2, 3, 6)
  assert train.modes == {'RGB': 3, 'L': 1}
  assert test.modes == {'RGB': 1, 'L': 1, 'RGBA': 1}
  assert [name for name, _ in train.broken] == [str(root / 'train/dog/e.jpg')]
  assert not test.broken
  assert (train.repeated, test.repeated, report.leaked) == (1, 0, 1)

  # Every image weighs the same, whatever its size.
  values = colour.reshape(-1, 3) / 255
  mean = (2 * values.mean(0) + 0.2 + 0.8) / 4
  square = (2 * (values**2).mean(0) + 0.04 + 0.64) / 4
  # float64 throughout.
  np.testing.assert_allclose(train.mean, mean, atol=1e-12)
  np.testing.assert_allclose(train.std, np.sqrt(square - mean**2), atol=1e-12)


def test_problems_name_each_thing(folder):
  root, _ = folder
  problems = check_data(f'image_folder:{root}').problems
  assert len(problems) == 3
  assert 'train/dog/e.jpg cannot be decoded' in problems[0]
  assert '1 images of train occur twice' in problems[1]
  assert '1 test images are also in train' in problems[2]


def test_json_and_table(folder):
  root, _ = folder
  report = check_data(f'image_folder:{root}')
  fields = json.loads(json.dumps(report.to_json()))
  assert fields['train']['class_counts'] == [3, 2]
  assert fields['problems'] == list(report.problems)
  console = rich.console.Console(width=120, file=io.StringIO())
  console.print(report)
  text = console.file.getvalue()
  assert '3 (cat)' in text
  assert '3 RGB, 1 L' in text


def test_what_is_turned_dark_or_left_out_is_reported(folder):
  root, _ = folder
  (root / 'train/dog/deep').mkdir()
  (root / 'train/dog/deep/i.jpg').write_bytes(
    tagged(np.zeros((4, 9, 3), np.uint8), 6, 'JPEG')
  )
  dark = np.full((4, 4), 4095, np.uint16)
  Image.fromarray(dark).save(root / 'train/dog/deep/j.tif')
  (root / 'train/cat/labels.txt').write_text('')
  report = check_data(f'image_folder:{root}')
  # Shown 9 wide and 4 high, stored the other way round.
  assert (report.train.heights[2], report.train.widths[2]) == (10, 9)
  assert report.train.left_out == {'.txt': 1}
  assert (report.train.name, report.test.name) == ('train', 'test')
  assert report.train.few_bits == 1
  assert any('1 16-bit images of train' in line for line in report.problems)
  assert '1 .txt' in str(report.table())


def test_grey_sets_have_one_channel(tmp_path):
  report = check_data('digits', str(tmp_path))
  assert report.train.num_images == 1437
  assert report.train.modes == {'L': 1437}
  assert len(report.train.mean) == 1
  dataset = open_dataset('digits', str(tmp_path))
  assert report.test.class_counts == tuple(np.bincount(dataset.test.labels))
  assert not report.train.broken


def test_empty_class_of_the_test_split():
  def source(labels):
    labels = np.array(labels, np.int32)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None]
    return ArraySource('x', images + labels.max().astype(np.uint8), labels)

  dataset = Dataset('x', ('a', 'b'), source([0, 1]), source([0]))
  report = check_data(dataset)
  assert 'class b has no image in test' in report.problems


def test_nothing_readable_is_an_error(folder):
  root, _ = folder
  for file in (root / 'test').rglob('*.png'):
    file.write_bytes(b'')
  with pytest.raises(DataError, match='can be decoded') as raised:
    check_data(f'image_folder:{root}')
  assert '\n' not in str(raised.value)
