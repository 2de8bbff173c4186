"""What was done: data, command, time, seed and versions, at the top of the page."""

import importlib
import pkgutil
import shlex
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax import configs
from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.config_differences import flatten
from lambda_vit_jax.cli.report import html
from lambda_vit_jax.cli.report.html import escape
from lambda_vit_jax.cli.report.results import Results

# A place for the results of a repetition: the command is that of any workdir.
_WORKDIR = 'runs/again'

# Far more than a config with every value changed: half a command is none.
_LONGEST_COMMAND = 100_000

# What makes the pruned model, by the config's `method`.
_METHODS = {
  'dilute': 'attention layers chosen, then diluted away in training',
  'linearize': 'attention layers chosen, then replaced without training',
  'compress': 'attention, MLPs and blocks under one budget, without training',
}


def section(results: Results) -> list[str]:
  """What was done, with the command that does it again."""
  config = results.config
  rows = [
    ('Data set', _data(results)),
    ('Model', _model(config)),
    ('Method', escape(_METHODS.get(config.get('method', ''), ''))),
    ('Seed', escape(config.get('seed', ''))),
    ('Duration', escape(_duration(results.journal))),
    ('Machine', escape(_listed(results.journal, 'device'))),
    ('Versions', escape(_versions(results))),
  ]
  if config:
    rows.append(
      ('Command', f'<pre><code>{_breakable(command(config))}</code></pre>')
    )
  rows = [(name, value) for name, value in rows if value]
  return ['<h2>What was done</h2>', html.facts(rows)] if rows else []


def _data(results: Results) -> str:
  data = results.config.get('data', {})
  source = data.get('source') if isinstance(data, dict) else None
  images = {
    row['num_images']
    for row in results.evaluation.values()
    if 'num_images' in row
  }
  parts = [f'<code>{escape(source)}</code>'] if source else []
  parts += [f'{number:,} test images' for number in sorted(images)]
  return ', '.join(parts)


def _model(config: Mapping[str, Any]) -> str:
  variant = config.get('model', {}).get('variant')
  if not variant:
    return ''
  start = config.get('init') or ''
  weights = f'weights <code>{escape(start)}</code>' if start else 'from scratch'
  return f'<code>{escape(variant)}</code>, {weights}'


def command(config: Mapping[str, Any]) -> str:
  """The command line whose config is this one.

  The name of the config file is in no workdir, so it begins with the config of
  the package that is nearest, and has a flag for each value that differs. The
  file that was given may be gone, or say something else by now.
  """
  flat = flatten(config)
  name, differing = min(
    ((name, _changes(flat, base)) for name, base in _configs().items()),
    key=lambda pair: len(pair[1]),
  )
  words = ['lambda-vit', 'run', f'--config={name}', f'--workdir={_WORKDIR}']
  return ' '.join([*map(shlex.quote, words), *differing])


def _breakable(text: str) -> str:
  """A command in HTML that is broken between its words, not after a hyphen."""
  words = escape(text, _LONGEST_COMMAND).split(' ')
  return ' '.join(f'<span>{word}</span>' for word in words)


def _changes(flat: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
  """Flags for values that a config of the package has otherwise."""
  return [
    flags.as_flag(key, value)
    for key, value in sorted(flat.items())
    if key in base and value != base[key]
  ]


def _configs() -> dict[str, dict[str, Any]]:
  """The values of each config of the package, by its name."""
  found = {}
  for module in pkgutil.iter_modules(configs.__path__):
    config = importlib.import_module(f'{configs.__name__}.{module.name}')
    if hasattr(config, 'get_config'):
      found[module.name] = flatten(config.get_config().to_dict())
  return found


def duration(seconds: float) -> str:
  """`4.1 s`, `3 min 20 s` or `2 h 5 min`."""
  # What would be rounded to 60.0 has minutes.
  if seconds < 59.95:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest} s'
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min'


def _duration(journal: Mapping[str, Any]) -> str:
  """All stages, and each of them; then the day."""
  if not journal:
    return ''
  total = sum(row['seconds'] for row in journal.values())
  each = ', '.join(
    f'{stage} {duration(row["seconds"])}' for stage, row in journal.items()
  )
  days = sorted({row['date'] for row in journal.values()})
  when = days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'
  return f'{duration(total)} ({each}), {when}'


def _listed(journal: Mapping[str, Any], key: str) -> str:
  """What stages were run with, mostly the same for all."""
  return '; '.join(dict.fromkeys(row[key] for row in journal.values()))


def _versions(results: Results) -> str:
  """Of all stages; of the benchmark alone where there is no journal."""
  rows = [row['versions'] for row in results.journal.values()]
  rows = rows or [results.benchmark.get('versions', {})]
  return '; '.join(
    dict.fromkeys(' '.join(f'{k} {v}' for k, v in row.items()) for row in rows)
  )
