"""Damaged and hostile files: refused in one line, or read as they were.

Every case damages one file with a seed of its own and reads it. Allowed are a
`LambdaVitError`, and a result that equals that of the whole file; a number
that changed and was computed with is a failure, and so are other exceptions,
a long wait and a large allocation.
"""

import dataclasses
import functools
import json
import pathlib
import resource
import shutil
import signal
import struct
import types
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from safetensors.numpy import save_file

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import convert, orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.checkpoints.load import (
  check_exported,
  load_pretrained,
  load_stage,
)
from lambda_vit_jax.cli import commands
from lambda_vit_jax.cli.stages import select
from lambda_vit_jax.core import digests, files
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.record import Round, Selection
from tests.support.mutations import damaged, odd_json

NANO = 'vit_nano_patch2_8'
CASES = 2000
FAST = 150

# No case takes a second; a minute is a hang.
_SECONDS = 60

# Nothing here holds more than a megabyte.
_MAX_GROWTH = 400 * 2**20


@pytest.fixture(scope='module')
def originals(tmp_path_factory) -> pathlib.Path:
  """One of every file that is read, whole."""
  root = tmp_path_factory.mktemp('fuzz')
  model = lv.create_model(NANO, seed=3)
  pruned = lv.prune(model, (1,))
  lv.export(pruned, root / 'export')
  shutil.copytree(root / 'export', root / 'parameters')
  (root / 'alone').mkdir()
  shutil.copy(root / 'export' / 'model.safetensors', root / 'alone')
  (root / 'foreign').mkdir()
  save_file(convert.encode(model.params), root / 'foreign/model.safetensors')
  (root / 'google').mkdir()
  np.savez(root / 'google/weights.npz', **_google(model))
  _write_checkpoint(root / 'run', model)
  (root / 'picked').mkdir()
  files.write_json(
    root / 'picked' / 'selection.json', digests.seal(_selection().to_json())
  )
  (root / 'images').mkdir()
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
  Image.fromarray(pixels).save(root / 'images' / 'picture.png')
  (root / 'photos').mkdir()
  Image.fromarray(pixels).save(root / 'photos' / 'picture.jpg')
  return root


def _google(model: Model) -> dict[str, np.ndarray]:
  """Google's form, with the one head that its arrays are written with."""
  return convert.encode(model.params, convert.GOOGLE)


def _write_checkpoint(workdir: pathlib.Path, model: Model) -> None:
  checkpointer = orbax_store.Checkpointer(workdir / 'checkpoints' / 'pretrain')
  meta = {'model': describe(model), 'has_ema': False}
  checkpointer.save(3, {'params': model.params}, meta)
  checkpointer.close()


def _selection() -> Selection:
  rows = (
    Round({0: 0.5, 1: -0.25, 2: 1.5}, 1, 0.1),
    Round({0: 0.5, 2: 0.1}, 2, 1),
  )
  return Selection(
    'transfer_entropy', 'logits', 'signed', 128, 3.5, (1, 2), (1, 2), rows
  )


def _seen(model: Model) -> Any:
  """Everything that predictions depend on, in a form that compares."""
  flat = convert.flatten(model.params)
  return (
    model.module,
    model.preprocessing,
    model.class_names,
    {name: np.asarray(leaf).tobytes() for name, leaf in flat.items()},
  )


def _read_folder(folder: pathlib.Path) -> Any:
  return _seen(load_pretrained(folder))


def _read_google(folder: pathlib.Path) -> Any:
  return _seen(load_pretrained(folder / 'weights.npz', variant=NANO))


def _read_checkpoint(folder: pathlib.Path) -> Any:
  return _seen(load_stage(folder, 'pretrain'))


def _read_selection(folder: pathlib.Path) -> Any:
  run = types.SimpleNamespace(path=lambda name: epath.Path(folder) / name)
  return select.removed_layers(run, 3)


@functools.cache
def _nano() -> Model:
  return lv.create_model(NANO)


def _read_image(folder: pathlib.Path) -> Any:
  (path,) = folder.iterdir()
  array, _ = commands._read_image(str(path), _nano())
  return array.tobytes()


def _read_program(folder: pathlib.Path) -> Any:
  # The parser of programs is not ours: it never sees a damaged one.
  check_exported(epath.Path(folder), 'model.stablehlo')
  return (folder / 'model.stablehlo').read_bytes()


@dataclasses.dataclass(frozen=True)
class Target:
  """A folder of `originals`, the files in it to damage, and its reader."""

  folder: str
  pattern: str
  read: Callable[[pathlib.Path], Any]
  # Whether the format holds a checksum of the numbers.
  detects: bool = True


TARGETS = (
  Target('export', 'model.json', _read_folder),
  Target('parameters', 'params/**/*', _read_folder),
  Target('alone', 'model.safetensors', _read_folder),
  Target('run', 'checkpoints/pretrain/3/**/*', _read_checkpoint),
  Target('picked', 'selection.json', _read_selection),
  Target('images', 'picture.png', _read_image),
  Target('google', 'weights.npz', _read_google),
  Target('export', 'model.stablehlo', _read_program),
  Target('foreign', 'model.safetensors', _read_folder, detects=False),
  Target('photos', 'picture.jpg', _read_image, detects=False),
)


class _Hang(BaseException):
  """Beyond every `except Exception`."""


def _alarm(signum: int, frame: Any) -> None:
  raise _Hang('a case took more than a minute')


@pytest.fixture
def guarded() -> Iterator[None]:
  """Time and memory of a test are bounded."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  old = signal.signal(signal.SIGALRM, _alarm)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert (after - before) * 1024 < _MAX_GROWTH


def _attempt(read: Callable[[], Any]) -> Any:
  """What `read` gives, or None for a proper refusal."""
  signal.setitimer(signal.ITIMER_REAL, _SECONDS)
  try:
    return read()
  except LambdaVitError as error:
    text = str(error)
    assert text
    assert '\n' not in text
    return None
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)


def _check(originals: pathlib.Path, folder: pathlib.Path, seeds: range) -> None:
  expected, files = {}, {}
  for seed in seeds:
    target = TARGETS[seed % len(TARGETS)]
    if target not in files:
      copy = folder / str(len(files))
      shutil.copytree(originals / target.folder, copy)
      found = [p for p in copy.glob(target.pattern) if p.is_file()]
      files[target] = copy, sorted(found)
      expected[target] = target.read(copy)
    copy, paths = files[target]
    path = paths[seed // len(TARGETS) % len(paths)]
    whole = path.read_bytes()
    changed = damaged(whole, seed)
    path.write_bytes(changed)
    try:
      result = _attempt(lambda: target.read(copy))  # noqa: B023
    except Exception as error:
      raise AssertionError(f'{seed=} {target.pattern} {path.name}') from error
    finally:
      path.write_bytes(whole)
    if target.detects and result is not None:
      assert result == expected[target], (
        f'{seed=}: {path.name} was changed, and read as if it were whole'
      )


def test_damaged_files_are_refused_or_read_as_they_were(
  originals, tmp_path, guarded
):
  _check(originals, tmp_path, range(FAST))


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
def test_2000_damaged_files(originals, tmp_path, guarded, part):
  size = CASES // 4
  _check(originals, tmp_path, range(part * size, (part + 1) * size))


@pytest.mark.parametrize('sealed', [True, False])
def test_odd_values_in_json(originals, tmp_path, guarded, sealed):
  """With a digest that fits, the validation alone has to hold."""
  for name, read in (
    ('export/model.json', _read_folder),
    ('picked/selection.json', _read_selection),
  ):
    source = originals / name
    copy = tmp_path / source.parent.name
    shutil.copytree(source.parent, copy)
    whole = read(copy)
    for seed in range(40):
      fields = odd_json(source.read_text(), seed)
      if sealed:
        fields = digests.seal(fields)
      (copy / source.name).write_text(json.dumps(fields))
      result = _attempt(lambda: read(copy))  # noqa: B023
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


def test_an_image_cannot_make_us_allocate(tmp_path, guarded):
  path = tmp_path / 'images' / 'bomb.png'
  path.parent.mkdir()
  Image.new('L', (8, 8)).save(path)
  data = bytearray(path.read_bytes())
  data[16:24] = struct.pack('>II', 60000, 60000)
  import zlib

  data[29:33] = struct.pack('>I', zlib.crc32(bytes(data[12:29])))
  path.write_bytes(bytes(data))
  assert _attempt(lambda: _read_image(path.parent)) is None


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
  whole = _seen(load_pretrained(originals / 'foreign'))
  assert _seen(load_pretrained(tmp_path / 'given')) == whole


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
    on_mesh = int(digests._global_checksum(jax.numpy.asarray(leaf)))
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
