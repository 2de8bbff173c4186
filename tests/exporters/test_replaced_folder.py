"""Unfinished exports: removed by their own process, or once it is gone."""

import os
import subprocess
import sys

import pytest
from etils import epath

from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.exporters import replaced_folder


@pytest.fixture
def target(tmp_path):
  return epath.Path(tmp_path) / 'out'


def write(target, error=None, before=lambda: None):
  """An export that ends, or fails with `error` after `before`."""
  with replaced_folder.replaced(target) as folder:
    (folder / 'model.json').write_text('{}')
    before()
    if error is not None:
      raise error


NO_SPACE = OSError(28, 'No space left on device')


def parts(target):
  return [p.name for p in target.parent.iterdir() if p.name.endswith('.part')]


class Interruption(BaseException):
  """Like a signal: not an Exception."""


@pytest.mark.parametrize('error', [NO_SPACE, Interruption()])
def test_a_failed_export_removes_its_own(target, error):
  with pytest.raises((LambdaVitError, Interruption)):
    write(target, error)
  assert not list(target.parent.iterdir())


def test_what_cannot_be_removed_hides_no_error(target, monkeypatch):
  def fail(*_, **__):
    raise OSError(5, 'Input/output error')

  with pytest.raises(LambdaVitError, match='No space'):
    write(
      target,
      NO_SPACE,
      lambda: monkeypatch.setattr(type(target), 'rmtree', fail),
    )
  assert len(parts(target)) == 1
  monkeypatch.undo()
  write(target)
  assert not parts(target)


def test_a_rename_that_fails_brings_the_old_one_back(target, monkeypatch):
  write(target)
  (target / 'old').write_text('')
  rename = type(target).rename

  def fail(path, to):
    if path.name.endswith('.part'):
      raise OSError(5, 'Input/output error')
    return rename(path, to)

  monkeypatch.setattr(type(target), 'rename', fail)
  with pytest.raises(LambdaVitError):
    write(target)
  assert (target / 'old').exists()


def left_by(target, pid, host=None):
  host = host or replaced_folder._host()
  path = target.parent / f'.out.{host}.{pid}.0123abcd.part'
  path.mkdir()
  (path / 'big').write_text('x')
  return path


def test_the_next_one_removes_what_a_killed_process_left(target):
  process = subprocess.Popen([sys.executable, '-c', ''])
  process.wait()
  left_by(target, process.pid)
  write(target)
  assert not parts(target)
  assert (target / 'model.json').exists()


def test_what_another_may_be_writing_stays(target):
  process = subprocess.Popen(
    [sys.executable, '-c', 'input()'], stdin=subprocess.PIPE
  )
  kept = [
    left_by(target, process.pid),
    # Its processes cannot be seen from here.
    left_by(target, 1, host='elsewhere'),
    # Of an earlier version, and of another target.
    target.parent / '.out.0123abcd.part',
    target.parent / f'.other.{replaced_folder._host()}.1.0123abcd.part',
  ]
  for path in kept[2:]:
    path.mkdir()
  write(target)
  process.communicate(b'\n')
  assert sorted(parts(target)) == sorted(path.name for path in kept)


def test_two_exports_of_one_process_leave_each_other_alone(target):
  with replaced_folder.replaced(target) as first:
    (first / 'model.json').write_text('first')
    write(target)
    assert first.exists()
  assert (target / 'model.json').read_text() == 'first'
  assert os.listdir(target.parent) == ['out']
