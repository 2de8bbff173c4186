"""How long files and functions may be, and what the code may not say.

Bounds, not taste: a file is read in one sitting, a function at one look.
"""

import ast
import pathlib
import re
import subprocess

import pytest

import lambda_vit_jax as lv

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / 'lambda_vit_jax'
FILES = sorted(PACKAGE.rglob('*.py'))

LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60
LINES_OF_A_BLOCK = 40
PARAMETERS = 8


def _functions(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef):
      yield node


def _length(node: ast.FunctionDef) -> int:
  """Lines from `def` to the end, without the docstring."""
  lines = node.end_lineno - node.lineno + 1
  first = node.body[0]
  if ast.get_docstring(node) is not None:
    lines -= first.end_lineno - first.lineno + 1
  return lines


def _parameters(node: ast.FunctionDef) -> int:
  arguments = node.args
  names = [
    argument.arg
    for argument in (
      *arguments.posonlyargs,
      *arguments.args,
      *arguments.kwonlyargs,
    )
  ]
  return len([name for name in names if name not in ('self', 'cls')])


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_files_and_functions_are_short(path):
  lines = len(path.read_text().splitlines())
  assert lines <= LINES_OF_A_FILE, f'{path} has {lines} lines'
  for node in _functions(path):
    length = _length(node)
    assert length <= LINES_OF_A_FUNCTION, f'{path}: {node.name} has {length}'
    # Users spell the keywords of the public functions; there a list of them
    # in `help` is worth more than an object that holds them.
    if node.name not in lv.__all__:
      count = _parameters(node)
      assert count <= PARAMETERS, f'{path}: {node.name} takes {count}'


@pytest.mark.parametrize(
  'name, owner', [('block', 'EncoderBlock'), ('vit', 'ViT')]
)
def test_the_forward_pass_is_taken_in_at_one_look(name, owner):
  tree = ast.parse((PACKAGE / 'models' / f'{name}.py').read_text())
  for node in ast.walk(tree):
    if isinstance(node, ast.ClassDef) and node.name == owner:
      call = next(
        n
        for n in node.body
        if isinstance(n, ast.FunctionDef) and n.name == '__call__'
      )
      assert _length(call) <= LINES_OF_A_BLOCK, f'{owner}: {_length(call)}'
      return
  pytest.fail(f'no class {owner} in models/{name}.py')


def test_no_page_is_cited_that_is_not_here():
  listed = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True
  )
  if listed.returncode:
    pytest.skip('not a git checkout')
  for name in filter(None, listed.stdout.split('\0')):
    path = ROOT / name
    if path.suffix in ('.py', '.md', '.ipynb') and path.exists():
      found = re.search(r'METHOD,? (section|\d)', path.read_text())
      assert not found or path == pathlib.Path(__file__), name
