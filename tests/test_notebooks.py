"""Every notebook is small, without outputs, and runs from top to bottom."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

NOTEBOOKS = sorted(
  (pathlib.Path(__file__).parents[1] / 'notebooks').glob('*.ipynb')
)


def code_cells(path):
  cells = json.loads(path.read_text())['cells']
  return [cell for cell in cells if cell['cell_type'] == 'code']


def test_there_are_notebooks():
  assert NOTEBOOKS


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_small_and_stripped(path):
  assert path.stat().st_size < 60_000
  for cell in code_cells(path):
    assert not cell['outputs']
    assert cell['execution_count'] is None


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
  script = '\n\n'.join(''.join(cell['source']) for cell in code_cells(path))
  environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'MPLBACKEND': 'agg'}
  done = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=environment,
  )
  assert done.returncode == 0, done.stderr
