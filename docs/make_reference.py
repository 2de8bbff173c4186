"""Write docs/reference from the code: a page a stage, and Python by theme.

  python docs/make_reference.py

The meaning of a config key is the comment above it in `configs/common.py`; the
text on a function is its docstring, and its example is in `docs/examples.txt`.
A test fails when a page is not current.
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
INDEX = ROOT / 'docs' / 'reference.md'
FOLDER = ROOT / 'docs' / 'reference'
EXAMPLES = ROOT / 'docs' / 'examples.txt'

_GENERATED = (
  'Generated from the code by [`docs/make_reference.py`]({up}make_reference.py); '
  'edit\nthe code, not this page.'
)

_EXIT_CODES = """| exit code | meaning |
|---|---|
| 0 | done; `--help` too |
| 1 | failed; one line on stderr names what, where and what to do |
| 2 | wrong command line or config, an unknown key included |
| 130, 143 | stopped by Ctrl-C or by SIGTERM; everything is saved |"""

_KEYS = """`--config.KEY=VALUE` sets one. Every config file has all of them; an unknown
key is an error. A duration is a number of steps (`1000`) or of epochs (`30ep`).
Where the default is empty, the last column describes what is used. A number
out of its range is refused before anything is computed."""

# Sections of the config that are shown with the stage that reads them; the
# others, and the top level, are on the page `config`.
_SECTIONS_OF = {'evaluate': ('evaluate', 'segment'), 'baseline': ()}

# Page: its title, and the public names on it in reading order.
THEMES = {
  'python_models': (
    'Python: models',
    ('load_pretrained', 'create_model', 'list_models', 'load_export', 'Model'),
  ),
  'python_images': (
    'Python: images, predictions, accuracy',
    ('image_batches', 'preprocess', 'predict', 'evaluate', 'Evaluation'),
  ),
  'python_choose': (
    'Python: what the layers do, and which may go',
    (
      'nose',
      'Selection',
      'load_selection',
      'choose_blocks',
      'entropy_profile',
      'spectrum',
    ),
  ),
  'python_change': (
    'Python: changes of a model',
    (
      'prune',
      'drop_blocks',
      'narrow_mlps',
      'merge_tokens',
      'fold',
      'quantize',
      'dequantize',
      'backbone',
      'with_decoder',
    ),
  ),
  'python_repair': (
    'Python: repairs without training',
    ('linearize', 'refit', 'recentre', 'narrow', 'polish'),
  ),
  'python_compress': (
    'Python: one budget, and training',
    ('compress', 'Compression', 'dilute'),
  ),
  'python_export': ('Python: export', ('export', 'push_to_hub')),
}


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


def _key_tables() -> dict[str, str]:
  """Return the table of each section of the config; the top level is `''`."""
  meanings = key_meanings()
  defaults = flatten(common.base().to_dict())
  ranges = {key: str(found) for key, found in settings.number_ranges().items()}
  augment = importlib.import_module('lambda_vit_jax.data.augment')
  for name, greatest in augment.GREATEST.items():
    ranges[f'data.augment.{name}'] = f'from 0 to {greatest}'
  rows: dict[str, list[str]] = {}
  for key, value in defaults.items():
    section = key.rpartition('.')[0]
    cells = (
      f'`{key}`',
      _shown(value),
      ranges.get(key, ''),
      _cell(meanings.get(key, '')),
    )
    rows.setdefault(section, []).append(f'| {" | ".join(cells)} |')
  header = ['| key | default | range | meaning |', '|---|---|---|---|']
  return {name: '\n'.join(header + found) for name, found in rows.items()}


def _config_file(path: pathlib.Path) -> str:
  defaults = flatten(common.base().to_dict())
  module = importlib.import_module(f'lambda_vit_jax.configs.{path.stem}')
  parts = [f'## `configs/{path.name}`', '', '```text']
  parts += [inspect.cleandoc(module.__doc__ or ''), '```', '']
  parts += ['| key | value |', '|---|---|']
  for key, value in flatten(module.get_config().to_dict()).items():
    if defaults.get(key) != value:
      parts.append(f'| `{key}` | {_shown(value)} |')
  return '\n'.join(parts)


def _config_files() -> dict[str, str]:
  """Return the pages on the config files: ImageNet's, and the others."""
  paths = [
    path
    for path in sorted((ROOT / 'configs').glob('*.py'))
    if path.stem not in ('__init__', 'common')
  ]
  head = 'Each file, with the keys that differ from the [defaults](config.md).'
  pages = {}
  for page, title, imagenet in (
    ('config_files', 'Config files', False),
    ('config_files_imagenet', 'Config files: ImageNet', True),
  ):
    shown = [p for p in paths if p.stem.startswith('imagenet') == imagenet]
    pages[page] = '\n\n'.join((f'# {title}', head, *map(_config_file, shown)))
  return pages


def _help_of(arguments: list[str]) -> str:
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    main.main([*arguments, '--help'])
  return out.getvalue().strip()


def _own_help(name: str) -> str:
  """Return the help of a stage without the paragraphs of the general help."""
  general = _help_of([])
  text = _help_of([name])
  if text == general:
    return ''
  own = [part for part in text.split('\n\n') if part not in general]
  return '\n'.join(('```text', '\n\n'.join(own), '```'))


def _stage_pages() -> dict[str, str]:
  """Return a page per stage, one for the other commands, one for all keys."""
  tables = _key_tables()
  pages = {}
  left = dict(tables)
  for name in flags.STAGES:
    parts = [f'# `lambda-vit {name}`', _own_help(name)]
    for section in _SECTIONS_OF.get(name, (name,)):
      if section in tables:
        parts += [f'## Keys of `{section}`', tables[section]]
        left.pop(section)
    if name == 'baseline':
      parts.append('Its keys are those of [`dilute`](dilute.md).')
    pages[name] = '\n\n'.join(parts)
  commands = ['# Commands without a config']
  for name in flags.COMMANDS:
    commands += [f'## `lambda-vit {name}`', _own_help(name)]
  pages['commands'] = '\n\n'.join(commands)
  parts = ['# Config keys', _KEYS]
  parts.append(
    'Keys of a stage are on its page: '
    + ', '.join(
      f'[`{name}`]({name}.md)' for name in flags.STAGES if name in tables
    )
    + '.'
  )
  # Keys without a section sort first.
  for section, table in sorted(left.items()):
    parts += [f'## `{section}`' if section else '## Top level', table]
  pages['config'] = '\n\n'.join(parts)
  return pages


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


def examples() -> dict[str, str]:
  """Return the lines of `examples.txt` on each public name."""
  parts = re.split(r'^lv\.(\w+)\n-+\n', EXAMPLES.read_text(), flags=re.M)
  return {
    name: text.strip()
    for name, text in zip(parts[1::2], parts[2::2], strict=True)
  }


def _members(owner: type) -> list[str]:
  """Return a table of the public methods and properties of a class."""
  rows = []
  for name, value in vars(owner).items():
    if name.startswith('_') or not getattr(value, '__doc__', None):
      continue
    if inspect.isfunction(value):
      parameters = list(inspect.signature(value).parameters)[1:]
      shown = f'{name}({", ".join(parameters)})'
    elif isinstance(value, property):
      shown = name
    else:
      continue
    first = inspect.cleandoc(value.__doc__).partition('\n\n')[0]
    rows.append(f'| `{shown}` | {_cell(" ".join(first.split()))} |')
  return ['| member | what it is |', '|---|---|', *rows, ''] if rows else []


def _python_pages() -> dict[str, str]:
  """Return a page per theme, each name with its docstring and example."""
  found = examples()
  pages = {}
  for page, (title, names) in THEMES.items():
    parts = [f'# {title}', '', 'Names of `import lambda_vit_jax as lv`.', '']
    for name in names:
      value = getattr(lambda_vit_jax, name)
      doc = inspect.cleandoc(value.__doc__ or '')
      signature = _signature(name, value.__module__)
      parts += [f'## `lv.{name}`', '', '```text', signature]
      parts += ['', doc.strip(), '```', '']
      if inspect.isclass(value):
        parts += _members(value)
      parts += ['```pycon', found[name], '```', '']
    pages[page] = '\n'.join(parts)
  return pages


def _index(pages: dict[str, str]) -> str:
  rows = []
  for name, text in pages.items():
    title = text.partition('\n')[0].removeprefix('# ')
    rows.append(f'- [{title}](reference/{name}.md)')
  return '\n\n'.join(
    (
      '# Reference',
      _GENERATED.format(up=''),
      'A page a stage, the config, and the Python names by theme:',
      '\n'.join(rows),
      '## Command line',
      '`python -m lambda_vit_jax` is the same program as `lambda-vit`.',
      f'```text\n{_help_of([])}\n```',
      _EXIT_CODES,
    )
  )


def render() -> dict[pathlib.Path, str]:
  """Return the text of every page by its path."""
  pages = _stage_pages() | _config_files() | _python_pages()
  texts = {INDEX: _index(pages)}
  for name, text in pages.items():
    head, _, body = text.partition('\n')
    note = _GENERATED.format(up='../')
    texts[FOLDER / f'{name}.md'] = f'{head}\n\n{note}\n{body}'
  return {
    path: re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    for path, text in texts.items()
  }


def write() -> None:
  """Write every page, and remove those of names that are gone."""
  texts = render()
  FOLDER.mkdir(exist_ok=True)
  for path in set(FOLDER.glob('*.md')) - set(texts):
    path.unlink()
  for path, text in texts.items():
    path.write_text(text)


if __name__ == '__main__':
  write()
