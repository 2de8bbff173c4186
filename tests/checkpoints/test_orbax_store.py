"""Orbax folders: whole or refused in one line, and nothing printed after it."""

import contextlib
import logging
import resource
import shutil
import sys

import numpy as np
import pytest

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.errors import CheckpointError


@pytest.fixture
def tree(rng):
  return {
    f'layer{index}': {'kernel': rng.normal(size=(8, 8)).astype(np.float32)}
    for index in range(6)
  }


@pytest.fixture
def saved(tree, tmp_path):
  orbax_store.save_tree(tmp_path / 'params', tree)
  return tmp_path / 'params'


def test_a_tree_comes_back(saved, tree):
  found = orbax_store.restore_tree(saved, tree)
  assert found.keys() == tree.keys()
  for name, layer in tree.items():
    np.testing.assert_array_equal(found[name]['kernel'], layer['kernel'])


def test_a_full_disk_is_an_error_of_the_system(rng, tmp_path):
  """Tensorstore raises a ValueError of several hundred characters."""
  tree = {'kernel': rng.normal(size=(256, 256)).astype(np.float32)}
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  # Room for what Orbax says of the arrays, but not for them.
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
  try:
    with pytest.raises(OSError, match=r'^File too large$'):
      orbax_store.save_tree(tmp_path / 'params', tree)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('keep', [0.0, 0.5])
def test_a_damaged_folder_is_one_line(saved, tree, keep, monkeypatch):
  reports = []
  monkeypatch.setattr(sys, 'unraisablehook', reports.append)
  hook = sys.unraisablehook
  for path in saved.rglob('*'):
    if path.is_file() and path.parent.name == 'd':
      data = path.read_bytes()
      path.write_bytes(data[: int(keep * len(data))])
  with pytest.raises(CheckpointError) as error:
    orbax_store.restore_tree(saved, tree)
  text = str(error.value)
  assert '\n' not in text
  assert text.startswith(f'{saved}: not the parameters that model.json')
  assert text.endswith('; export the model again')
  # The other reads have failed as well, and their tracebacks are not shown;
  # other code finds the hook that it set.
  assert reports == []
  assert sys.unraisablehook is hook


def test_other_reports_pass_the_hook(saved, tree, monkeypatch):
  """An error in a destructor while Orbax reads is not ours to hide."""
  reports = []
  monkeypatch.setattr(sys, 'unraisablehook', reports.append)

  class Broken:
    def __del__(self):
      raise RuntimeError('ours')

  def restore(*arguments):
    Broken()
    return restored

  restored = orbax_store.restore_tree(saved, tree)
  checkpointer = orbax_store.orbax().StandardCheckpointer
  monkeypatch.setattr(checkpointer, 'restore', restore)
  assert orbax_store.restore_tree(saved, tree) is restored
  (report,) = reports
  assert str(report.exc_value) == 'ours'


def test_scores_that_hold_no_accuracy_are_one_line(tree, tmp_path):
  writer = orbax_store.Checkpointer(tmp_path, keep_best=True)
  for step in (1, 2):
    writer.save(step, {'params': tree}, {'model': {}}, {'accuracy': 0.5})
  writer.close()
  (tmp_path / '2/metrics/metrics').write_text('{}')
  reader = orbax_store.Checkpointer(tmp_path, reader=True)
  with contextlib.closing(reader), pytest.raises(CheckpointError) as error:
    reader.best_step()
  assert 'the best is not known' in str(error.value)
  assert 'metrics' in str(error.value)


@pytest.fixture
def scored(tmp_path, tree):
  """A stage's folder with two steps and their accuracies."""
  checkpointer = orbax_store.Checkpointer(tmp_path, keep_best=True)
  for step, accuracy in ((1, 0.5), (2, 0.25)):
    checkpointer.save(step, {'params': tree}, {}, {'accuracy': accuracy})
  checkpointer.close()
  return tmp_path


@pytest.mark.parametrize('options', [{'reader': True}, {'keep_best': True}])
@pytest.mark.parametrize('text', ['', '{"accuracy": ', '\ud800'])
def test_damaged_scores_are_one_line_that_names_them(scored, text, options):
  path = scored / '2' / 'metrics' / 'metrics'
  path.write_bytes(text.encode('utf-8', 'surrogatepass'))
  with pytest.raises(CheckpointError) as error:
    orbax_store.Checkpointer(scored, **options)
  assert str(error.value).startswith(f'{path}: ')
  assert '\n' not in str(error.value)
  # The remedy that it gives.
  assert f'remove the folder {path.parent}, ' in str(error.value)
  shutil.rmtree(path.parent)
  checkpointer = orbax_store.Checkpointer(scored, **options)
  assert (checkpointer.latest_step(), checkpointer.best_step()) == (2, 1)


def test_reading_logs_nothing(scored, caplog):
  with caplog.at_level(logging.DEBUG, 'absl'):
    with contextlib.closing(orbax_store.Checkpointer(scored, reader=True)):
      pass
    noise = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert not noise
    # Other lines of the library are not held back.
    logging.getLogger('absl').warning('disk is slow')
  assert 'disk is slow' in caplog.text
