"""Write docs/reference.md from the code: commands, config keys, Python names.

  python docs/make_reference.py

The meaning of a config key is the comment above it in `configs/common.py`; the
text on a function is its docstring. A test fails when the page is not current.
"""

import ast
import contextlib
import importlib
import inspect
import io
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lambda_vit_jax.configs import common

import lambda_vit_jax
from lambda_vit_jax import main
from lambda_vit_jax.cli import flags, settings

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'reference.md'

_HEAD = """# Reference

Generated from the code by [`docs/make_reference.py`](make_reference.py); edit
the code, not this page.

- [Command line](#command-line)
- [Config keys](#config-keys)
- [Config files](#config-files)
- [Python](#python)
"""

_COMMANDS = """## Command line

`python -m lambda_vit_jax` is the same program as `lambda-vit`.

{help}

| exit code | meaning |
|---|---|
| 0 | done; `--help` too |
| 1 | failed; one line on stderr names what, where and what to do |
| 2 | wrong command line or config, an unknown key included |
| 130, 143 | stopped by Ctrl-C or by SIGTERM; everything is saved |
"""

_KEYS = """## Config keys

`--config.KEY=VALUE` sets one. Every config file has all of them; an unknown
key is an error. A duration is a number of steps (`1000`) or of epochs (`30ep`).
Where the default is empty, the last column describes what is used. A number
out of its range is refused before anything is computed.
"""


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flatten nested mappings to `{'data.source': value}`, in their order."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _comment_above(lines: list[str], line_number: int) -> str:
  """Return the comment that ends on the line before `line_number` (from 1)."""
  found: list[str] = []
  for line in reversed(lines[: line_number - 1]):
    text = line.strip()
    if not text.startswith('#'):
      break
    found.insert(0, text.removeprefix('#').strip())
  return ' '.join(found)


def _attribute_docs(owner: type) -> dict[str, str]:
  """Parse the section `Attributes:` of a class's docstring."""
  text = inspect.cleandoc(owner.__doc__ or '').partition('Attributes:\n')[2]
  entries = re.findall(r'^  (\w+): ((?:.+\n?)(?:    .+\n?)*)', text, re.M)
  return {name: ' '.join(body.split()) for name, body in entries}


def _dict_keys(node: ast.AST, lines: list[str], prefix: str) -> dict[str, str]:
  found: dict[str, str] = {}
  for part in ast.walk(node):
    if isinstance(part, ast.Dict):
      for key in part.keys:
        if isinstance(key, ast.Constant):
          found[f'{prefix}{key.value}'] = _comment_above(lines, key.lineno)
  return found


def _target_paths(
  node: ast.Assign, names: dict[str, str]
) -> Iterator[tuple[str, int]]:
  """Yield the config keys that an assignment sets.

  A section that is assigned to a local name is added to `names`.
  """
  paths = []
  for target in node.targets:
    text = ast.unparse(target)
    owner, dot, rest = text.partition('.')
    if dot and owner in names:
      paths.append('.'.join(filter(None, (names[owner], rest))))
  for target in node.targets:
    if isinstance(target, ast.Name) and paths:
      names[target.id] = paths[0]
  yield from ((path, node.lineno) for path in paths)


def key_meanings() -> dict[str, str]:
  """Collect the comment above each key in `configs/common.py`."""
  source = inspect.getsource(common)
  lines = source.splitlines()
  functions = {
    node.name: node
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef)
  }
  training = _dict_keys(functions['_training'], lines, '')
  names = {'config': ''}
  found: dict[str, str] = {}
  for node in ast.walk(functions['base']):
    if not isinstance(node, ast.Assign):
      continue
    for path, line in _target_paths(node, names):
      found.setdefault(path, _comment_above(lines, line))
      found |= _dict_keys(node.value, lines, f'{path}.')
  for section in ('pretrain', 'dilute'):
    for key, text in training.items():
      found.setdefault(f'{section}.{key}', text)
  augment = importlib.import_module('lambda_vit_jax.data.augment')
  for key, text in _attribute_docs(augment.Augment).items():
    found[f'data.augment.{key}'] = text[0].upper() + text[1:]
  found['data.augment.kind'] = (
    'The recipe: ' + ', '.join(f'`{kind}`' for kind in augment.RECIPES) + '.'
  )
  return found


def _shown(value: Any) -> str:
  return 'empty' if value is None or value == '' else f'`{value!r}`'


def _cell(text: str) -> str:
  return text.replace('|', r'\|')


def _key_tables() -> str:
  meanings = key_meanings()
  defaults = flatten(common.base().to_dict())
  ranges = {key: str(found) for key, found in settings.number_ranges().items()}
  augment = importlib.import_module('lambda_vit_jax.data.augment')
  for name, greatest in augment.GREATEST.items():
    ranges[f'data.augment.{name}'] = f'from 0 to {greatest}'
  pages: dict[str, list[str]] = {}
  for key, value in defaults.items():
    section = key.rpartition('.')[0]
    cells = (
      f'`{key}`',
      _shown(value),
      ranges.get(key, ''),
      _cell(meanings.get(key, '')),
    )
    row = f'| {" | ".join(cells)} |'
    pages.setdefault(section, []).append(row)
  parts = []
  # Keys without a section sort first.
  for section, rows in sorted(pages.items()):
    title = f'`{section}`' if section else 'Top level'
    parts += [f'### {title}', '', '| key | default | range | meaning |']
    parts += ['|---|---|---|---|', *rows, '']
  return '\n'.join(parts)


def _config_files() -> str:
  defaults = flatten(common.base().to_dict())
  parts = [
    '## Config files',
    '',
    'Each file, with the keys that differ from the defaults above.',
    '',
  ]
  for path in sorted((ROOT / 'configs').glob('*.py')):
    if path.stem in ('__init__', 'common'):
      continue
    module = importlib.import_module(f'lambda_vit_jax.configs.{path.stem}')
    parts += [f'### `configs/{path.name}`', '', '```text']
    parts += [inspect.cleandoc(module.__doc__ or ''), '```', '']
    parts += ['| key | value |', '|---|---|']
    for key, value in flatten(module.get_config().to_dict()).items():
      if defaults.get(key) != value:
        parts.append(f'| `{key}` | {_shown(value)} |')
    parts.append('')
  return '\n'.join(parts)


def _help_of(arguments: list[str]) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    main.main([*arguments, '--help'])
  return out.getvalue().strip()


def _command_line() -> str:
  general = _help_of([])
  parts = ['```text', general, '```']
  for name in (*flags.STAGES, *flags.COMMANDS):
    text = _help_of([name])
    if text != general:
      # Paragraphs of the general help are not repeated.
      own = [p for p in text.split('\n\n') if p not in general]
      text = '\n\n'.join(own)
      parts += ['', f'### `lambda-vit {name}`', '', '```text', text, '```']
  return _COMMANDS.format(help='\n'.join(parts))


def _signature(name: str, module: str) -> str:
  """Return the signature of a public name as its file spells it."""
  source = inspect.getsource(importlib.import_module(module))
  node = next(
    node
    for node in ast.parse(source).body
    if getattr(node, 'name', None) == name
  )
  if not isinstance(node, ast.FunctionDef):
    return f'class {name}'
  short = f'{name}({ast.unparse(node.args)})'
  result = f' -> {ast.unparse(node.returns)}' if node.returns else ''
  if len(short + result) <= 80:
    return short + result
  # One argument per line; a comma inside brackets does not end an argument.
  arguments = re.split(r', (?![^\[(]*[\])])', ast.unparse(node.args))
  return f'{name}(\n  ' + ',\n  '.join(arguments) + f',\n){result}'


def _python() -> str:
  parts = ['## Python', '', 'Names of `import lambda_vit_jax as lv`.', '']
  for name in sorted(lambda_vit_jax.__all__):
    value = getattr(lambda_vit_jax, name)
    if isinstance(value, str):
      continue
    doc = inspect.cleandoc(value.__doc__ or '')
    signature = _signature(name, value.__module__)
    parts += [f'### `lv.{name}`', '', '```text', signature]
    parts += ['', doc.strip(), '```', '']
  return '\n'.join(parts)


def render() -> str:
  """Return the text of the page."""
  sections = (_HEAD, _command_line(), _KEYS, _key_tables(), _config_files())
  text = '\n'.join((*sections, _python()))
  return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


if __name__ == '__main__':
  PAGE.write_text(render())
