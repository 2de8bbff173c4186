"""JSON files: atomic, strict, and damage reported in one line."""

import json
import pathlib

import pytest
from etils import epath

from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError


def test_an_object_comes_back(tmp_path):
  value = {'scores': {'0': 0.5}, 'order': [1, 2], 'none': None, 'λ': 'ü'}
  files.write_json(tmp_path / 'a.json', value)
  assert files.read_json(tmp_path / 'a.json') == value
  assert files.read_object(str(tmp_path / 'a.json')) == value
  # People read these files, and tools append to them.
  text = (tmp_path / 'a.json').read_text()
  assert text.startswith('{\n  "scores"')
  assert text.endswith('}\n')


@pytest.mark.parametrize('value', [float('nan'), {'a': [float('inf')]}, {1, 2}])
def test_what_is_no_json_leaves_the_old_file(tmp_path, value):
  path = tmp_path / 'a.json'
  files.write_json(path, [1])
  with pytest.raises((TypeError, ValueError)):
    files.write_json(path, value)
  assert files.read_json(path) == [1]
  assert [file.name for file in tmp_path.iterdir()] == ['a.json']


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  files.write_json(path, [1])

  def fails(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'replace', fails)
  with pytest.raises(OSError):
    files.write_json(path, [2])
  assert files.read_json(path) == [1]


@pytest.mark.parametrize(
  'data, words',
  [
    (b'', 'not readable as JSON'),
    (b'{"a":', 'not readable as JSON'),
    (b'\xff\xfe', 'not readable as JSON'),
    (b'[1]', 'holds no JSON object'),
    (b'null', 'holds no JSON object'),
  ],
)
def test_damaged_objects_are_one_line(tmp_path, data, words):
  path = tmp_path / 'a.json'
  path.write_bytes(data)
  with pytest.raises(CheckpointError, match=words) as error:
    files.read_object(path)
  assert str(error.value).startswith(f'{path}: ')
  assert '\n' not in str(error.value)


def test_a_missing_file(tmp_path):
  with pytest.raises(CheckpointError, match='no such file'):
    files.read_json(tmp_path / 'a.json')


def test_any_json_value_is_read(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps([1, 'a']))
  assert files.read_json(path) == [1, 'a']


@pytest.mark.parametrize(
  'path, expected',
  [
    ('gs://bucket/run', 'gs://bucket/run'),
    ('/tmp/run', '/tmp/run'),
    ('run', f'{pathlib.Path.cwd()}/run'),
    ('~/run', f'{pathlib.Path.home()}/run'),
  ],
)
def test_absolute_paths(path, expected):
  assert str(files.absolute(path)) == expected
