"""Damaged and hostile files: refused in one line, or read as they were.

`tests/support/fuzz.py` damages one file per case with a seed of its own, reads
it as a user would and judges the outcome; a number that changed and was
computed with is a failure, and so are other exceptions, a long wait, output
that moves a cursor and a large allocation.
"""

import json
import os
import pathlib
import resource
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from lambda_vit_jax import main
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.data.inputs import read_image
from tests.support import fuzz, fuzz_files
from tests.support.mutations import odd_json

NANO = fuzz_files.NANO
# Cases of each kind of file.
FAST, SLOW = 3, 7

# Nothing here holds more than a megabyte.
_MAX_GROWTH = 400 * 2**20


@pytest.fixture(scope='module')
def originals(tmp_path_factory) -> pathlib.Path:
  """One of every file that is read, whole."""
  root = tmp_path_factory.mktemp('fuzz')
  fuzz_files.make_originals(root)
  return root


@pytest.fixture
def guarded() -> Iterator[None]:
  """Memory of a test is bounded; `fuzz.attempt` bounds its time."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  yield
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (after - before) * 1024 < _MAX_GROWTH


_attempt = fuzz.attempt


def _run(originals: pathlib.Path, folder: pathlib.Path, seeds: range) -> None:
  cases = fuzz.Cases(originals, folder)
  for seed in seeds:
    cases.run(seed)


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_as_they_were(
  originals, tmp_path, guarded
):
  _run(originals, tmp_path, range(FAST * len(fuzz.TARGETS)))


@pytest.mark.slow
def test_many_damaged_files(originals, tmp_path, guarded):
  """`benchmarks/fuzz.py` runs thousands."""
  count = len(fuzz.TARGETS)
  _run(originals, tmp_path, range(FAST * count, (FAST + SLOW) * count))


@pytest.mark.parametrize('name', ['weights.pth', 'weights.bin', 'weights.npz'])
def test_a_pickle_is_not_run(tmp_path, monkeypatch, name):
  """With and without PyTorch; the program would leave a file."""
  monkeypatch.chdir(tmp_path)
  program = b'cos\nsystem\n(S"touch executed"\ntR.'
  if name.endswith('.npz'):
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header = header.ljust(117) + b'\n'
    array = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header
    with zipfile.ZipFile(name, 'w') as archive:
      archive.writestr('cls.npy', array + program)
  else:
    pathlib.Path(name).write_bytes(program)
  assert _attempt(lambda: load_pretrained(name, variant=NANO)) is None
  assert os.listdir() == [name]


def test_the_harness_notices(originals, tmp_path):
  """What a wrong program would do in its cases."""

  def fails(error: Exception) -> Callable[[], Any]:
    def read() -> Any:
      raise error

    return read

  with pytest.raises(KeyError):
    _attempt(fails(KeyError('x')))
  assert _attempt(fails(LambdaVitError('one line'))) is None
  raw = LambdaVitError()
  raw.args = ('two\nlines',)
  with pytest.raises(fuzz.FuzzError, match='no proper line'):
    _attempt(fails(raw))
  with pytest.raises(fuzz.FuzzError, match='made something start'):
    _attempt(lambda: os.system('true'))
  with pytest.raises(UserWarning):
    _attempt(lambda: warnings.warn('x', stacklevel=1))


@pytest.mark.parametrize('sealed', [True, False])
def test_odd_values_in_json(originals, tmp_path, guarded, sealed):
  """With a digest that fits, the validation alone has to hold."""
  source = originals / 'export' / 'model.json'
  copy = tmp_path / 'export'
  shutil.copytree(source.parent, copy)
  whole = fuzz.read_folder(copy)
  for seed in range(40):
    fields = odd_json(source.read_text(), seed)
    if sealed:
      fields = digests.seal(fields)
    (copy / source.name).write_text(json.dumps(fields))
    result = _attempt(lambda: fuzz.read_folder(copy))
    if not sealed and 'sha256' in fields:
      assert result in (None, whole), seed


# --- claims of size ---


def _header(fields: dict) -> bytes:
  text = json.dumps(fields).encode()
  return struct.pack('<Q', len(text)) + text


@pytest.mark.parametrize('count', [2**31, 2**60, 2**63, 2**70, -1])
def test_a_safetensors_header_cannot_make_us_allocate(tmp_path, guarded, count):
  path = tmp_path / 'model.safetensors'
  entry = {'dtype': 'F32', 'shape': [count], 'data_offsets': [0, 4 * count]}
  path.write_bytes(_header({'cls_token': entry}) + bytes(16))
  assert _attempt(lambda: load_pretrained(path, variant=NANO)) is None
  path.write_bytes(struct.pack('<Q', count % 2**64) + b'{}')
  assert _attempt(lambda: load_pretrained(path, variant=NANO)) is None


@pytest.mark.parametrize('shape', [(2**60,), (2**31, 2**31), (2**33, 4), (-1,)])
def test_an_npz_header_cannot_make_us_allocate(
  originals, tmp_path, guarded, shape
):
  path = tmp_path / 'weights.npz'
  text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
  header = text.ljust(117).encode() + b'\n'
  member = b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header
  with zipfile.ZipFile(originals / 'google/weights.npz') as source:
    names = source.namelist()
    with zipfile.ZipFile(path, 'w') as archive:
      for name in names:
        archive.writestr(name, member if 'cls' in name else source.read(name))
  assert _attempt(lambda: load_pretrained(path, variant=NANO)) is None


def test_an_image_cannot_make_us_allocate(originals, tmp_path, guarded):
  whole = load_pretrained(originals / 'export')
  path = tmp_path / 'images' / 'bomb.png'
  path.parent.mkdir()
  Image.new('L', (8, 8)).save(path)
  data = bytearray(path.read_bytes())
  data[16:24] = struct.pack('>II', 60000, 60000)
  import zlib

  data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
  path.write_bytes(bytes(data))
  assert _attempt(lambda: read_image(str(path), whole)) is None


def test_sizes_in_model_json_are_bounded(originals, tmp_path, guarded):
  fields = json.loads((originals / 'export/model.json').read_text())
  for name, value in (
    ('depth', 60000),
    ('embed_dim', 2**16 + 2),
    ('num_registers', 2**40),
    ('patch_size', -2),
  ):
    changed = fields | {
      'architecture': fields['architecture'] | {name: value},
      'attention_modes': ['full'] * 60000,
      'norm_eps': [1e-6] * 60001,
    }
    (tmp_path / 'model.json').write_text(json.dumps(digests.seal(changed)))
    assert _attempt(lambda: load_pretrained(tmp_path)) is None


# --- places ---


def test_names_in_an_archive_are_never_places(tmp_path):
  outside = tmp_path / 'outside.npy'
  path = tmp_path / 'inside' / 'weights.npz'
  path.parent.mkdir()
  with zipfile.ZipFile(path, 'w') as archive:
    for name in ('../outside.npy', str(outside)):
      archive.writestr(name, b'\x93NUMPY\x01\x00')
  assert _attempt(lambda: load_pretrained(path, variant=NANO)) is None
  assert not outside.exists()


def test_links_out_of_a_folder_are_not_followed(originals, tmp_path):
  secret = tmp_path / 'secret'
  shutil.copytree(originals / 'foreign', secret)
  (secret / 'config.json').write_text('{"architecture": "hidden"}')
  given = tmp_path / 'given'
  given.mkdir()
  for name in ('model.safetensors', 'config.json'):
    (given / name).symlink_to(secret / name)
    if name == 'config.json':
      (given / 'model.safetensors').unlink()
      shutil.copy(secret / 'model.safetensors', given)
    with pytest.raises(LambdaVitError, match='link out of its folder'):
      load_pretrained(given)


def test_links_of_the_hubs_cache_are_followed(originals, tmp_path):
  repository = tmp_path / 'models--timm--nano'
  snapshot = repository / 'snapshots' / 'abc'
  snapshot.mkdir(parents=True)
  (repository / 'blobs').mkdir()
  source = originals / 'foreign' / 'model.safetensors'
  shutil.copy(source, repository / 'blobs' / 'digest')
  (snapshot / source.name).symlink_to('../../blobs/digest')
  assert load_pretrained(snapshot).variant == NANO


def test_links_in_an_export_are_not_followed(originals, tmp_path):
  shutil.copytree(originals / 'export', tmp_path / 'export')
  (tmp_path / 'export/params/everything').symlink_to('/')
  with pytest.raises(LambdaVitError, match='is a link'):
    load_pretrained(tmp_path / 'export')


def test_an_index_file_names_nothing_that_is_opened(originals, tmp_path):
  shutil.copytree(originals / 'foreign', tmp_path / 'given')
  index = {'weight_map': {'cls_token': '../secret.safetensors'}}
  path = tmp_path / 'given' / 'model.safetensors.index.json'
  path.write_text(json.dumps(index))
  whole = fuzz.seen(load_pretrained(originals / 'foreign'))
  assert fuzz.seen(load_pretrained(tmp_path / 'given')) == whole


def test_model_json_names_no_file_outside(originals, tmp_path):
  shutil.copytree(originals / 'export', tmp_path / 'export')
  path = tmp_path / 'export' / 'model.json'
  fields = json.loads(path.read_text())
  fields['files']['params/../../secret'] = '0' * 64
  path.write_text(json.dumps(digests.seal(fields)))
  with pytest.raises(LambdaVitError, match='not the file that was exported'):
    load_pretrained(tmp_path / 'export')


# --- the command ---


def test_predict_says_one_line_about_damage(originals, tmp_path, capsys):
  picture = originals / 'images' / 'picture.png'
  shutil.copytree(originals / 'export', tmp_path / 'export')
  path = tmp_path / 'export' / 'model.json'
  text = path.read_text()
  path.write_text(text.replace('gelu', 'quick_gelu'))
  argv = ['predict', f'--model={tmp_path / "export"}', str(picture)]
  assert main.main(argv) == 1
  error = capsys.readouterr().err
  assert 'changed since it was written' in error
  assert error.count('\n') == 1


# --- fingerprints ---


def test_a_fingerprint_is_the_same_on_a_mesh_and_on_the_host(rng):
  tree = {
    'a': rng.normal(size=(16, 6)).astype(np.float32),
    'b': rng.integers(0, 9, (8,)).astype(np.int8),
    'c': np.float32(2.5),
    'd': rng.normal(size=(8, 2)).astype(np.float16),
    'e': rng.normal(size=8) > 0,
  }
  for name, leaf in tree.items():
    on_mesh = int(digests._device_checksum(jax.numpy.asarray(leaf)))
    assert on_mesh == digests._checksum(leaf), name


def test_every_single_word_counts(rng):
  array = rng.normal(size=(5, 7)).astype(np.float32)
  whole = digests.fingerprint([array])
  for index in np.ndindex(array.shape):
    changed = array.copy()
    changed[index] = np.nextafter(changed[index], np.float32(9))
    assert digests.fingerprint([changed]) != whole


def test_rows_that_changed_places_are_seen(rng):
  array = rng.normal(size=(5, 7)).astype(np.float32)
  for axis in (0, 1):
    moved = np.roll(array, 1, axis)
    assert digests.fingerprint([moved]) != digests.fingerprint([array])
