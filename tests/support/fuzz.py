"""Damage files with a seed, read them as a user would, and judge the outcome.

Allowed are a refusal in one line (`LambdaVitError`, or the error line of a
command), and a result; where the format has a checksum, one that equals that
of the whole file. Any other exception, output that moves a cursor, a long wait
and a process or pickle that is started are failures.

`benchmarks/fuzz.py` runs any number of cases; `tests/end_to_end/test_fuzz.py` a
few.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import shutil
import signal
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import convert, load
from lambda_vit_jax.checkpoints.load import load_pretrained, load_stage
from lambda_vit_jax.cli import result_files
from lambda_vit_jax.cli.stages import select
from lambda_vit_jax.cli.workdir_lock import WorkdirLock
from lambda_vit_jax.compression.record import Compression
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.core.text import LONGEST_LINE, printable
from lambda_vit_jax.data.inputs import preprocess
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics
from tests.support import mutations
from tests.support.fuzz_files import CONFIG, NANO

# No case takes a second on an idle machine; a minute is a hang.
SECONDS = 60

_FORBIDDEN = {
  'os.system',
  'os.exec',
  'os.posix_spawn',
  'os.fork',
  'pickle.find_class',
  'socket.connect',
  'subprocess.Popen',
}


class FuzzError(AssertionError):
  """A case whose outcome is not allowed."""


class Hang(BaseException):
  """Beyond every `except Exception`."""


# --- readers ---


def seen(model: Model) -> Any:
  """Everything that predictions depend on, in a form that compares."""
  flat = convert.flatten(model.params)
  return (
    model.module,
    model.preprocessing,
    model.class_names,
    {name: np.asarray(leaf).tobytes() for name, leaf in flat.items()},
  )


def read_folder(folder: pathlib.Path) -> Any:
  """As weights, with which a picture is prepared."""
  model = load_pretrained(folder)
  shape = (
    (9, 11) if model.module.in_chans == 1 else (9, 11, model.module.in_chans)
  )
  preprocess([np.zeros(shape, np.uint8)], model)
  return seen(model)


def _read_google(folder: pathlib.Path) -> Any:
  return seen(load_pretrained(folder / 'weights.npz', variant=NANO))


def _read_pickle(folder: pathlib.Path) -> Any:
  return seen(load_pretrained(folder / 'weights.pth', variant=NANO))


def _read_checkpoint(folder: pathlib.Path) -> Any:
  return seen(load_stage(folder, 'pretrain'))


def _read_best(folder: pathlib.Path) -> Any:
  return seen(load_stage(folder, 'pretrain', best=True))


def _read_layers(folder: pathlib.Path) -> Any:
  run = types.SimpleNamespace(path=lambda name: epath.Path(folder) / name)
  return select.removed_layers(run, 3)  # type: ignore[arg-type]


def _read_search(folder: pathlib.Path) -> Any:
  found = result_files.read(epath.Path(folder), 'selection.part.json')
  selection = Selection.from_json(found or {})
  selection.plot().savefig(io.BytesIO(), format='svg')
  return repr(selection), selection._repr_html_()


def _read_path(folder: pathlib.Path) -> Any:
  found = result_files.read(epath.Path(folder), 'compression.json')
  path = Compression.from_json(found or {})
  path.plot().savefig(io.BytesIO(), format='svg')
  return repr(path), path._repr_html_(), path.frontier()


def _read_metrics(folder: pathlib.Path) -> Any:
  MetricsWriter(folder).rewind('dilute', 2)
  return read_metrics(folder / 'metrics.jsonl')


def _read_program(folder: pathlib.Path) -> Any:
  # The parser of programs is not ours: it never sees a damaged one.
  load.check_exported(epath.Path(folder), 'model.stablehlo')
  return (folder / 'model.stablehlo').read_bytes()


def command(*argv: str) -> str:
  """Runs a command of the program; returns what it prints.

  Raises:
    LambdaVitError: it refused, in one line.
    FuzzError: it printed what it should not.
  """
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main.main([*argv, '--quiet'])
  lines = err.getvalue().splitlines()
  for line in (*lines, *out.getvalue().splitlines()):
    if line != printable(line):
      raise FuzzError(f'a line is not fit for a terminal: {line[:200]!r}')
  errors = [line for line in lines if not line.startswith('warning: ')]
  if len(errors) != (code != 0):
    raise FuzzError(f'exit code {code} with {len(errors)} lines: {errors[:3]}')
  if code:
    if '--debug for a traceback' in errors[0]:
      raise FuzzError(f'a raw exception: {errors[0]}')
    raise LambdaVitError(errors[0])
  return out.getvalue()


def _lock(folder: pathlib.Path) -> Any:
  """Takes a workdir over from a job that has ended."""
  owner = (folder / 'lock.json').read_bytes()
  lock = WorkdirLock(epath.Path(folder))
  try:
    lock.acquire()
  finally:
    lock.release()
    (folder / 'lock.json').write_bytes(owner)
  return True


def _report(folder: pathlib.Path) -> Any:
  command('report', f'--config={CONFIG}', f'--workdir={folder}')
  page = (folder / 'report.html').read_text(encoding='utf-8')
  if '<script>alert' in page or '\x1b' in page:
    raise FuzzError('text of a file is markup in the report')
  return page


@functools.cache
def _nano(where: str, variant: str | None) -> Model:
  del where, variant
  return load_pretrained(_MODEL[0])


# The whole export of these originals, for `predict`.
_MODEL: list[pathlib.Path] = []


def _predict(folder: pathlib.Path) -> Any:
  original = load.load_pretrained
  load.load_pretrained = _nano  # type: ignore[assignment]
  try:
    return command('predict', '--model=whole', *map(str, folder.iterdir()))
  finally:
    load.load_pretrained = original


def _check_data(kind: str) -> Callable[[pathlib.Path], Any]:
  return lambda folder: command('check-data', f'{kind}:{folder}')


# --- what is damaged ---


@dataclasses.dataclass(frozen=True)
class Target:
  """A folder of the originals, the files in it to damage, and its reader.

  Attributes:
    folder: of the originals.
    pattern: of the files.
    read: reads the folder.
    damage: makes a damaged file from a whole one and a seed.
    detects: whether a checksum covers what is read.
  """

  folder: str
  pattern: str
  read: Callable[[pathlib.Path], Any]
  damage: Callable[[bytes, int], bytes] = mutations.damaged
  detects: bool = False

  def __str__(self) -> str:
    return f'{self.folder}/{self.pattern} ({self.damage.__name__.strip("_")})'


_JSON, _LINES = mutations.damaged_json, mutations.damaged_lines

TARGETS = (
  # Weights: ours, timm's, Google's, PyTorch's.
  Target('export', 'model.json', read_folder, detects=True),
  Target('export', 'model.json', read_folder, _JSON),
  Target('unsealed', 'model.json', read_folder, _JSON),
  Target('export', 'params/**/*', read_folder, detects=True),
  Target('unsealed', 'params/**/*', read_folder),
  Target('unsealed', 'params/_[MC]*', read_folder, _JSON),
  Target('alone', 'model.safetensors', read_folder, detects=True),
  Target('alone', 'model.safetensors', read_folder, mutations.damaged_header),
  Target('foreign', 'model.safetensors', read_folder),
  Target('foreign', 'model.safetensors', read_folder, mutations.damaged_header),
  Target('timm', 'config.json', read_folder, _JSON),
  Target('shards', '*.index.json', read_folder, _JSON),
  Target('transformers', 'config.json', read_folder, _JSON),
  Target('transformers', 'preprocessor_config.json', read_folder, _JSON),
  Target('google', 'weights.npz', _read_google, detects=True),
  Target('google', 'weights.npz', _read_google, mutations.damaged_member),
  Target('pickle', 'weights.pth', _read_pickle),
  Target('export', 'model.stablehlo', _read_program, detects=True),
  # Checkpoints of a run.
  Target('run', 'checkpoints/pretrain/3/**/*', _read_checkpoint, detects=True),
  Target('run', 'checkpoints/pretrain/3/meta/*', _read_checkpoint, _JSON),
  Target('run', 'checkpoints/pretrain/3/**/_*A*', _read_checkpoint, _JSON),
  Target('run', 'checkpoints/pretrain/3/metrics/*', _read_best, _JSON),
  # Results of a run, most of which only the report reads.
  Target('picked', 'selection.json', _read_layers, detects=True),
  Target('picked', 'selection.json', _read_layers, _JSON),
  Target('search', 'selection.part.json', _read_search, _JSON),
  Target('path', 'compression.json', _read_path, _JSON),
  Target('lines', 'metrics.jsonl', _read_metrics, _LINES),
  Target('workdir', 'config.json', _report, _JSON),
  Target('workdir', 'stages.json', _report, _JSON),
  Target('workdir', 'analysis.json', _report, _JSON),
  Target('workdir', 'selection.json', _report, _JSON),
  Target('workdir', 'compression.json', _report, _JSON),
  Target('workdir', 'evaluation.json', _report, _JSON),
  Target('workdir', 'benchmark.json', _report, _JSON),
  Target('workdir', 'linear/model.json', _report, _JSON),
  Target('workdir', 'metrics.jsonl', _report, _LINES),
  Target('workdir', 'pictures/*', _report),
  Target('locked', 'lock.json', _lock, _JSON),
  # Images, masks and data sets.
  Target('images', 'picture.png', _predict),
  Target('photos', 'picture.jpg', _predict),
  Target('forms', 'picture.webp', _predict),
  Target('scans', 'picture.tif', _predict),
  Target('classes', '**/*.png', _check_data('image_folder')),
  Target('scenes', '**/masks/*.png', _check_data('segmentation_folder')),
  Target('scenes', 'classes.txt', _check_data('segmentation_folder')),
  Target('digits', '*.gz', _check_data('idx_folder'), mutations.damaged_gzip),
)


# --- one case ---


@dataclasses.dataclass
class _Watch:
  """Notes forbidden events while it is on; hooks cannot be removed."""

  on: bool = False
  events: list[str] = dataclasses.field(default_factory=list)

  def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
    if self.on and event in _FORBIDDEN:
      self.events.append(f'{event} {arguments!r}'[:200])


@functools.cache
def _watch() -> _Watch:
  watch = _Watch()
  sys.addaudithook(watch)
  return watch


def _alarm(signum: int, frame: Any) -> None:
  raise Hang(f'a case took more than {SECONDS} s')


@contextlib.contextmanager
def bounded() -> Iterator[None]:
  """Ends what takes too long, with `Hang`."""
  old = signal.signal(signal.SIGALRM, _alarm)
  signal.setitimer(signal.ITIMER_REAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def attempt(read: Callable[[], Any]) -> Any:
  """What `read` gives, or None for a proper refusal.

  Raises:
    FuzzError: a refusal in more than one line, or something was started.
  """
  watch = _watch()
  watch.events.clear()
  watch.on = True
  try:
    with bounded(), warnings.catch_warnings():
      # A warning is two lines on stderr.
      warnings.simplefilter('error')
      return read()
  except LambdaVitError as error:
    text = str(error)
    if not text or text != printable(text) or len(text) > LONGEST_LINE:
      raise FuzzError(f'no proper line: {text[:300]!r}') from error
    return None
  finally:
    watch.on = False
    if watch.events:
      raise FuzzError(f'a file made something start: {watch.events}')


class Cases:
  """Copies of the originals, damaged and mended in turn."""

  def __init__(self, originals: pathlib.Path, folder: pathlib.Path):
    """Copies and reads nothing yet.

    Args:
      originals: see `fuzz_files.make_originals`.
      folder: for the copies.
    """
    self._originals = originals
    self._folder = folder
    self._copies: dict[Target, tuple[pathlib.Path, list[pathlib.Path]]] = {}
    self._whole: dict[Target, Any] = {}
    _MODEL[:] = [originals / 'export']

  def run(self, seed: int) -> bool:
    """Runs one case; returns whether the damaged file was read.

    Raises:
      FuzzError: an outcome that is not allowed; names seed, target and file.
    """
    target = TARGETS[seed % len(TARGETS)]
    if target not in self._copies:
      copy = self._folder / str(len(self._copies))
      shutil.copytree(self._originals / target.folder, copy)
      paths = [p for p in copy.glob(target.pattern) if p.is_file()]
      if not paths:
        raise FuzzError(f'{target}: there is no such file')
      self._copies[target] = copy, sorted(paths)
      self._whole[target] = attempt(lambda: target.read(copy))
      # Without PyTorch its files are refused.
      if self._whole[target] is None and target.folder != 'pickle':
        raise FuzzError(f'{target}: the whole file is refused')
    copy, paths = self._copies[target]
    path = paths[seed // len(TARGETS) % len(paths)]
    whole = path.read_bytes()
    path.write_bytes(target.damage(whole, seed // len(TARGETS)))
    try:
      found = attempt(lambda: target.read(copy))
    except Exception as error:
      raise FuzzError(
        f'{seed=} {target} {path.name}: {type(error).__name__}: {error}'
      ) from error
    finally:
      path.write_bytes(whole)
    if target.detects and found is not None and found != self._whole[target]:
      raise FuzzError(
        f'{seed=} {target} {path.name} was changed, and read as if it were whole'
      )
    return found is not None
