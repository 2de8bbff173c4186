"""JSON files: atomic, strict, and damage reported in one line."""

import concurrent.futures
import json
import pathlib
import re

import pytest
from etils import epath

from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError, UsageError
from lambda_vit_jax.core.schema import Anything, Object


def test_an_object_comes_back(tmp_path):
  value = {'scores': {'0': 0.5}, 'order': [1, 2], 'none': None, 'λ': 'ü'}
  files.write_json(tmp_path / 'a.json', value)
  assert files.read_json(tmp_path / 'a.json', Object()) == value
  assert files.read_json(str(tmp_path / 'a.json'), Object()) == value
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
  assert files.read_json(path, Anything()) == [1]
  assert [file.name for file in tmp_path.iterdir()] == ['a.json']


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  files.write_json(path, [1])

  def fails(self, target):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'replace', fails)
  with pytest.raises(OSError):
    files.write_json(path, [2])
  assert files.read_json(path, Anything()) == [1]


def test_two_writers_do_not_meet(tmp_path):
  """A report may be written beside a run that ends with the same page."""
  path = tmp_path / 'report.html'
  pages = [letter * 300_000 for letter in 'ab']

  def write(page):
    for _ in range(40):
      files.write_text(path, page)
      assert path.read_text() in pages

  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    for done in [pool.submit(write, page) for page in pages]:
      done.result()
  assert [file.name for file in tmp_path.iterdir()] == ['report.html']


@pytest.mark.parametrize(
  'data, words',
  [
    (b'', 'not readable as JSON'),
    (b'{"a":', 'not readable as JSON'),
    (b'\xff\xfe', 'not readable as JSON'),
    (b'[1]', 'the content is a list of 1, but must be an object'),
    (b'null', 'the content is null, but must be an object'),
    (b'{"a": NaN}', 'the number NaN'),
    (b'{"a": -Infinity}', 'the number -Infinity'),
    (b'{"a": 1e999}', 'the number 1e999'),
    (b'{"a": 1, "b": 0, "a": 2}', '`a` is there twice'),
    # Python refuses more than 4,300 digits by itself, in two lines.
    (b'{"a": %s}' % (b'9' * 26), 'a number of 26 digits'),
    (b'{"a": %s}' % (b'9' * 5000), 'a number of 5000 digits'),
    (b'{"a": %s1%s}' % (b'[' * 33, b']' * 33), 'more than 32 levels'),
    (b'[' * 100_000, 'more than 32 levels'),
    (b'{"a":' * 100_000, 'more than 32 levels'),
    (b'{"a": "\\ud800"}', 'no Unicode'),
    (b'{"\\udfff": 1}', 'no Unicode'),
  ],
)
def test_damaged_objects_are_one_line(tmp_path, data, words):
  path = tmp_path / 'a.json'
  path.write_bytes(data)
  with pytest.raises(CheckpointError, match=words) as error:
    files.read_json(path, Object())
  text = str(error.value)
  assert text.startswith(f'{path}: ')
  assert text.isprintable()
  assert len(text) < 300 + len(str(path))


def test_deep_text_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
  """At the bottom of the stack, whatever runs beside the parser fails aloud."""
  monkeypatch.setattr(
    files.json, 'loads', lambda *a, **k: pytest.fail('parsed')
  )
  for text in ('[' * 33, '{"a": "\\"", "b": ' * 33, '"' + ('"[' * 99)):
    with pytest.raises(CheckpointError, match='more than 32 levels'):
      files.parse_json(text, 'a.json', Object())


@pytest.mark.parametrize('text', ['[' * 99, '"[' * 99, '\\"[{' * 99, '[\\'])
def test_brackets_in_text_are_no_levels(text):
  value = {text: [text, [text]]}
  found = files.parse_json(json.dumps(value), 'a.json', Object())
  assert found == value


@pytest.mark.parametrize(
  'data, value',
  [
    (b'\xef\xbb\xbf{"a": 1}', {'a': 1}),
    (b'{"a": %s1%s}' % (b'[' * 31, b']' * 31), None),
    (b'{"a": 9007199254740993}', {'a': 9007199254740993}),
    ('{"λ": "\u2028\\u0000"}'.encode(), {'λ': '\u2028\0'}),
  ],
  ids=('byte order mark', 'deep', 'large', 'text'),
)
def test_odd_but_valid_files_are_read(tmp_path, data, value):
  (tmp_path / 'a.json').write_bytes(data)
  found = files.read_json(tmp_path / 'a.json', Object())
  assert value is None or found == value


def test_a_file_too_large_to_be_json_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(files, '_LARGEST_FILE', 1 << 20)
  path = tmp_path / 'a.json'
  path.write_bytes(b' ' * ((1 << 20) + 1))
  with pytest.raises(CheckpointError, match='larger than 1 MiB'):
    files.read_json(path, Anything())


def test_a_folder_is_no_file(tmp_path):
  with pytest.raises(CheckpointError, match='cannot be read'):
    files.read_json(tmp_path, Anything())


def test_nothing_else_in_the_package_parses_json():
  """`digests` reads what it has just written, `processes` its own messages."""
  allowed = {'core/files.py', 'core/digests.py', 'runtime/processes.py'}
  # A config's tuples become the lists that `config.json` stores.
  allowed.add('cli/workdir.py')
  # Lines for whoever reads the card.
  allowed.add('exporters/model_card.py')
  # Lines for PyTorch users, who copy the file without the package.
  allowed.add('exporters/pytorch.py')
  package = pathlib.Path(files.__file__).parents[1]
  found = {
    str(path.relative_to(package))
    for path in package.rglob('*.py')
    if re.search(r'json\.loads?\(|JSONDecoder', path.read_text())
  }
  assert found <= allowed


def test_a_missing_file(tmp_path):
  with pytest.raises(CheckpointError, match='no such file'):
    files.read_json(tmp_path / 'a.json', Anything())


def test_any_json_value_is_read(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps([1, 'a']))
  assert files.read_json(path, Anything()) == [1, 'a']


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


@pytest.mark.parametrize(
  'path, opened', [('file:///a/b', '/a/b'), ('gs://a/b', 'gs://a/b')]
)
def test_a_path_may_name_its_storage(path, opened):
  assert str(files.user_path(path)) == opened


@pytest.mark.parametrize('path', ['foo://a/b', 'file://host/b'])
def test_unknown_storage_is_one_line(path):
  with pytest.raises(UsageError, match='paths of this kind') as raised:
    files.user_path(path)
  assert '\n' not in str(raised.value)


def test_an_empty_path_is_not_the_current_folder():
  with pytest.raises(UsageError, match='the path is empty'):
    files.user_path('')
