"""Every room's `__init__` is a docstring that lists exactly its files."""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[2] / 'lambda_vit_jax'
ROOMS = sorted(path.parent for path in PACKAGE.rglob('*/__init__.py'))

each_room = pytest.mark.parametrize(
  'room', ROOMS, ids=lambda path: path.relative_to(PACKAGE).as_posix()
)


def files(room: pathlib.Path) -> list[str]:
  """The names in a room: its files without their suffix, and its folders."""
  names = [path.stem for path in room.glob('*.py') if path.stem != '__init__']
  return sorted(names + [p.parent.name for p in room.glob('*/__init__.py')])


@each_room
def test_the_docstring_lists_exactly_the_files(room):
  text = ast.get_docstring(ast.parse((room / '__init__.py').read_text()))
  lines = re.findall(r'^- ((?:`\w+/?`(?:, )?)+): .', text, re.MULTILINE)
  listed = re.findall(r'`(\w+)/?`', ' '.join(lines))
  assert sorted(listed) == files(room)


@each_room
def test_the_room_imports_nothing_by_itself(room):
  body = ast.parse((room / '__init__.py').read_text()).body
  assert len(body) == 1, 'a docstring, and no code'
