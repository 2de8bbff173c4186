"""Import rules between rooms, files and outside packages, by syntax tree."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / 'lambda_vit_jax'

# Each room, and exactly the rooms that its files may import.
ROOMS = {
  'core': set(),
  'runtime': {'core'},
  'data': {'core'},
  'models': {'core', 'runtime'},
  'analysis': {'core', 'runtime', 'models'},
  'checkpoints': {'core', 'models'},
  'training': {'core', 'runtime', 'models', 'checkpoints'},
  'training_free': {'core', 'runtime', 'models', 'analysis', 'training'},
  'exporters': {'core', 'models', 'checkpoints'},
  'evaluation': {'core', 'runtime', 'data', 'models', 'analysis'},
  'selection': {
    'core',
    'runtime',
    'models',
    'analysis',
    'training',
    'training_free',
    'evaluation',
  },
  'compression': {
    'core',
    'runtime',
    'models',
    'analysis',
    'training_free',
    'evaluation',
    'selection',
  },
  'cli': {
    'core',
    'runtime',
    'data',
    'models',
    'analysis',
    'checkpoints',
    'training',
    'training_free',
    'exporters',
    'evaluation',
    'selection',
    'compression',
    'configs',
  },
  'main': {'cli', 'runtime', 'core'},
  '__main__': {'main'},
  # Looks its public names up by string, when they are first used.
  '__init__': set(),
}

# Each outside package, and the only rooms that may import it.
ONLY_IN = {
  'absl': {'main', 'cli'},
  'flax': {'models'},
  'grain': {'data'},
  'huggingface_hub': {'checkpoints'},
  'matplotlib': {'core', 'cli'},
  'ml_collections': {'main', 'cli'},
  'orbax': {'checkpoints'},
  'tensorboardX': {'training'},
  'scipy': {'selection', 'training_free'},
  'sklearn': {'data'},
  'tensorflow': set(),
  'tensorflow_datasets': {'data'},
  # `exporters.pytorch`, which the runtime `torch` imports when it is opened.
  'timm': {'exporters'},
  'torch': {'checkpoints', 'exporters'},
}


def _name(path: pathlib.Path) -> str:
  """Dotted name within the package: `models.block`, `data` for its `__init__`."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  if len(parts) > 1 and parts[-1] == '__init__':
    parts = parts[:-1]
  return '.'.join(parts)


FILES = {_name(path): path for path in sorted(PACKAGE.rglob('*.py'))}


def _room(name: str) -> str:
  return name.partition('.')[0]


def _imported(path: pathlib.Path) -> set[str]:
  """Dotted names that a file imports, at its top or within a function."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
    elif (
      # importlib.import_module('x'), with a literal name.
      isinstance(node, ast.Call)
      and isinstance(node.func, ast.Attribute)
      and node.func.attr == 'import_module'
      and isinstance(node.args[0], ast.Constant)
    ):
      found.add(node.args[0].value)
  return found


def _own_imports(path: pathlib.Path) -> set[str]:
  """The files of the package that a file imports."""
  found = set()
  for name in _imported(path):
    root, _, rest = name.partition('.')
    if root != 'lambda_vit_jax':
      continue
    # `from package.file import name` names the file; otherwise the file is
    # what is imported. Names of the package's own head are in `__init__`.
    parent = rest.rpartition('.')[0]
    if rest in FILES:
      found.add(rest)
    elif parent in FILES:
      found.add(parent)
    elif rest.startswith('configs'):
      found.add('configs')
  return found


EDGES = {name: _own_imports(path) - {name} for name, path in FILES.items()}


def test_every_room_has_its_row():
  assert {_room(name) for name in FILES} == set(ROOMS)
  python = {path.name for path in PACKAGE.glob('*.py')}
  assert python == {'__init__.py', '__main__.py', 'main.py'}
  # For type checkers, which have no room of their own.
  unread = ('__pycache__', '__init__.pyi', 'py.typed')
  entries = [p for p in PACKAGE.iterdir() if p.name not in unread]
  assert len(entries) <= 16


@pytest.mark.parametrize('name', FILES)
def test_imports_follow_the_table(name):
  allowed = ROOMS[_room(name)] | {_room(name)}
  wrong = {other for other in EDGES[name] if _room(other) not in allowed}
  assert not wrong, f'{name} imports {wrong}; {_room(name)} may not'


def test_the_design_page_shows_this_table():
  page = (ROOT / 'docs' / 'design.md').read_text()
  rows = re.findall(r'^\| `(\w+)(?:/|\.py)` \| .+ \| (.+) \|$', page, re.M)
  shown = {room: set(re.findall(r'\w+', others)) for room, others in rows}
  assert shown == {r: ROOMS[r] for r in ROOMS if not r.startswith('__')}


def test_the_table_holds_no_arrow_that_nobody_needs():
  used = {room: set() for room in ROOMS}
  for name, others in EDGES.items():
    used[_room(name)] |= {_room(other) for other in others} - {_room(name)}
  unused = {room: ROOMS[room] - used[room] for room in ROOMS}
  assert not any(unused.values()), unused


def test_no_cycle_between_rooms():
  done = []
  while len(done) < len(ROOMS):
    free = [
      r for r in ROOMS if r not in done and not ROOMS[r] - {*done, 'configs'}
    ]
    assert free, f'a cycle among {set(ROOMS) - set(done)}'
    done += free


def test_no_cycle_between_files():
  left = {name: set(others) & set(FILES) for name, others in EDGES.items()}
  while left:
    free = [name for name, others in left.items() if not others & set(left)]
    assert free, f'a cycle among {sorted(left)}'
    for name in free:
      del left[name]


@pytest.mark.parametrize('package, allowed', ONLY_IN.items())
def test_outside_packages_stay_in_their_room(package, allowed):
  for name, path in FILES.items():
    for other in _imported(path):
      if other.partition('.')[0] == package:
        assert _room(name) in allowed, f'{path} imports {other}'


def test_matplotlib_is_imported_only_inside_functions():
  for path in FILES.values():
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module]
      else:
        continue
      assert not any(name.startswith('matplotlib') for name in names), path


def test_configs_import_only_ml_collections_and_common():
  for path in (ROOT / 'configs').glob('*.py'):
    for name in _imported(path):
      root = name.partition('.')[0]
      assert root in {'ml_collections', 'typing', 'lambda_vit_jax'}, path
      if root == 'lambda_vit_jax':
        assert name.startswith('lambda_vit_jax.configs'), path


def test_no_test_file_imports_another():
  """Shared helpers are in tests/support/."""
  for path in (ROOT / 'tests').rglob('*.py'):
    for name in _imported(path):
      modules = [part for part in name.split('.') if part.startswith('test_')]
      assert not modules, f'{path} imports {name}'
