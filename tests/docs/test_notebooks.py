"""Every notebook is small, stripped, paired with its script, and runs."""

import ast
import json
import os
import pathlib
import re
import runpy
import subprocess
import tomllib

import pytest

from tests.support import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
MAKER = runpy.run_path(str(ROOT / 'notebooks' / 'make_notebooks.py'))
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
CONFIG = '--config=configs/digits.py'
each_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def cells(path, kind='code'):
  found = json.loads(path.read_text())['cells']
  return [cell for cell in found if cell['cell_type'] == kind]


def source(cell):
  return ''.join(cell['source'])


def first_cell(path):
  return source(cells(path)[0])


def test_each_notebook_has_a_script_and_each_script_a_notebook():
  names = {path.stem for path in NOTEBOOKS}
  assert names == {'look_inside', 'choose_and_dilute', 'bring_your_own'}
  assert {path.stem for path in MAKER['scripts']()} == names


@each_notebook
def test_pair_agrees(path):
  script = path.with_suffix('.py').read_text()
  assert json.loads(path.read_text()) == MAKER['notebook'](script), (
    'run `python notebooks/make_notebooks.py`'
  )


@each_notebook
def test_small_and_stripped(path):
  assert path.stat().st_size < 60_000
  for cell in cells(path):
    assert not cell['outputs']
    assert cell['execution_count'] is None


@each_notebook
def test_badge_opens_this_notebook_and_readme_links_it(path):
  owner = re.search(r'github\.com/([\w-]+)/', first_cell(path))[1]
  link = (
    f'https://colab.research.google.com/github/{owner}/lambda_vit_jax/'
    f'blob/main/notebooks/{path.name}'
  )
  assert link in source(cells(path, 'markdown')[0])
  assert f'](notebooks/{path.name})' in (ROOT / 'README.md').read_text()


@each_notebook
def test_the_first_cell_installs_what_the_package_needs(path):
  text = first_cell(path)
  assert text == first_cell(NOTEBOOKS[0])
  values = {
    ast.unparse(node.targets[0]): node.value
    for node in ast.parse(text).body
    if isinstance(node, ast.Assign)
  }
  lines = ast.literal_eval(values['NEEDED'])
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert lines == sorted(project['dependencies'])
  # The runtime provides JAX for its accelerator; we never install another.
  assert not re.search(r'jax\[|jaxlib|--upgrade|colab_tpu', text)


@each_notebook
def test_the_first_cell_installs_nothing_here(path, monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError(args)

  monkeypatch.setattr(subprocess, 'run', refuse)
  exec(first_cell(path), {})


@each_notebook
def test_defines_no_class_and_imports_the_public_face(path):
  text = '\n'.join(map(source, cells(path)))
  for node in ast.walk(ast.parse(text)):
    assert not isinstance(node, ast.ClassDef)
    if isinstance(node, ast.ImportFrom) and 'lambda_vit' in (node.module or ''):
      assert node.module == 'lambda_vit_jax.main'


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom_and_shows_its_plots(
  path, tmp_path, monkeypatch
):
  """As Jupyter runs it, with fewer steps: a figure that is only text is no plot."""
  import nbclient
  import nbformat

  monkeypatch.setenv('JUPYTER_RUNTIME_DIR', str(tmp_path))
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': xla_flags.flags(),
    'TMPDIR': str(tmp_path),
  }
  environment.pop('MPLBACKEND', None)
  notebook = nbformat.read(path, as_version=4)
  assert (CONFIG in path.read_text()) == (path.stem == 'choose_and_dilute')
  for cell in notebook.cells:
    cell.source = cell.source.replace(CONFIG, f'{CONFIG}:runlocal')
  client = nbclient.NotebookClient(
    notebook, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute(env=environment)
  for cell in notebook.cells:
    plots = cell.source.count('.plot(') if cell.cell_type == 'code' else 0
    pictures = [
      output
      for output in cell.get('outputs', ())
      if 'image/png' in output.get('data', {})
    ]
    assert len(pictures) == plots, cell.source
