"""docs/troubleshooting*.md have a row for every error message, and no other."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / 'lambda_vit_jax'
PAGES = sorted((ROOT / 'docs').glob('troubleshooting*.md'))
# A message with fewer letters only passes on the text of another error.
FEWEST_LETTERS = 8
# Functions that raise an error with the text that they are given.
RAISING = {'_read'}


@functools.cache
def trees():
  return [
    (path.relative_to(PACKAGE), ast.parse(path.read_text()))
    for path in sorted(PACKAGE.rglob('*.py'))
  ]


def error_classes():
  """Names of LambdaVitError and its subclasses."""
  bases = {
    node.name: {ast.unparse(base) for base in node.bases}
    for _, tree in trees()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
  }
  found = {'LambdaVitError'}
  while True:
    more = {name for name in bases if bases[name] & found} - found
    if not more:
      return found
    found |= more


def template(node):
  """The text of a message, with `…` for inserted values."""
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    return node.value
  if isinstance(node, ast.JoinedStr):
    return ''.join(map(template, node.values))
  if isinstance(node, ast.BinOp):
    return template(node.left) + template(node.right)
  return '…'


@functools.cache
def messages():
  """`(place, text)` of every error that the package constructs."""
  return list(_messages())


def _messages():
  errors = error_classes() | RAISING
  for path, tree in trees():
    for node in ast.walk(tree):
      if isinstance(node, ast.Call) and ast.unparse(node.func) in errors:
        text = max(map(template, node.args), key=len, default='')
        text = ' '.join(text.split())
        if len(re.findall(r'[a-z]', text)) >= FEWEST_LETTERS:
          yield f'{path}:{node.lineno}', text


def rows():
  """The first column of every table of messages, as patterns."""
  for path in PAGES:
    page = path.read_text().partition('## No message')[0]
    for line in re.findall(r'^\| `([^`]+)` \|', page, re.MULTILINE):
      parts = (re.escape(part) for part in line.split('…'))
      yield line, re.compile('.*'.join(parts))


def test_every_message_has_its_row():
  patterns = [pattern for _, pattern in rows()]
  missing = [
    f'{place}: {text}'
    for place, text in messages()
    if not any(pattern.search(text) for pattern in patterns)
  ]
  assert not missing, 'add rows to docs/troubleshooting*.md for:\n' + '\n'.join(
    missing
  )


def test_every_row_has_its_message():
  texts = [text for _, text in messages()]
  stale = [
    line
    for line, pattern in rows()
    if not any(pattern.search(text) for text in texts)
  ]
  assert not stale


def test_the_walk_sees_the_messages():
  # Lower bounds, so that a walk that finds nothing does not pass.
  assert len(messages()) > 150
  assert len(list(rows())) > 120
