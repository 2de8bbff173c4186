"""Parse a command line: the stage, its config with overrides, and the flags."""

import difflib
import pathlib
import re
import shlex
import warnings
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from lambda_vit_jax.cli import config_differences
from lambda_vit_jax.cli.help import COMMANDS, STAGES
from lambda_vit_jax.cli.settings import BUDGETS
from lambda_vit_jax.core.errors import UsageError, nearest


def check_flags(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  auto: bool,
) -> bool:
  """Returns whether the flags ask for a job of several processes.

  Raises:
    UsageError: flags that do not make sense together.
  """
  given = {
    '--coordinator': coordinator,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return auto
  if auto:
    raise UsageError(
      '--distributed finds the job by itself; leave out --coordinator, '
      '--num_processes and --process_id, or leave out --distributed'
    )
  if coordinator is None or num_processes is None or process_id is None:
    raise UsageError(
      f'{", ".join(missing)} missing; a job of several processes needs '
      f'{", ".join(given)} (or --distributed alone on a TPU pod or in Slurm)'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise UsageError(
      f'--coordinator={coordinator}: give HOST:PORT of process 0'
    )
  if not 0 <= process_id < num_processes:
    raise UsageError(
      f'--process_id={process_id} must lie in 0..{num_processes - 1} '
      f'(--num_processes={num_processes})'
    )
  return True


def find_config(path: str) -> str:
  """Returns the path of a config file, else of its namesake in the package."""
  name, colon, argument = path.partition(':')
  if name.startswith('~'):
    # Not at the top: `--help` is to be answered at once.
    from lambda_vit_jax.core.files import user_path

    name = str(user_path(name))
  if not pathlib.Path(name).exists():
    package = pathlib.Path(__file__).parents[1]
    packaged = package / 'configs' / name.removeprefix('configs/')
    beside = package.parent / name
    short = (
      folder / f'{name}.py'
      for folder in (package / 'configs', package.parent / 'configs')
      if name.isidentifier()
    )
    for candidate in (packaged, beside, *short):
      if candidate.exists():
        return f'{candidate}{colon}{argument}'
    known = {p.stem for p in (package / 'configs').glob('*.py')}
    known |= {p.stem for p in (package.parent / 'configs').glob('*.py')}
    guess = nearest(pathlib.Path(name).stem, known)
    raise UsageError(
      f'--config={name}: no such file{guess}; configs/digits.py is one to start '
      'from'
    )
  if not name or pathlib.Path(name).is_dir():
    raise UsageError(
      f'--config={name}: is no file; configs/digits.py is one to start from'
    )
  return f'{name}{colon}{argument}'


def _define_flags(arguments: list[str]) -> flags.FlagValues:
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config',
    None,
    'The config file.',
    lock_config=True,
    flag_values=values,
    # Overrides are looked up here, which is not sys.argv in a notebook.
    sys_argv=['lambda-vit', *arguments],
  )
  # Their help is in `help.py`.
  for name in ('workdir', 'coordinator'):
    flags.DEFINE_string(name, None, '', flag_values=values)
  for name in ('num_processes', 'process_id'):
    flags.DEFINE_integer(name, None, '', flag_values=values)
  for name in ('distributed', 'json', 'quiet', 'debug', 'print_config'):
    flags.DEFINE_bool(name, False, '', flag_values=values)
  return values


def parse(argv: Sequence[str]) -> tuple[str, Any, flags.FlagValues]:
  """Returns the stage, its config and the flags.

  Args:
    argv: without the program's name.

  Raises:
    UsageError: anything the user got wrong.
  """
  if not argv:
    raise UsageError('no stage given; `lambda-vit --help` lists them')
  stage, rest = argv[0], list(argv[1:])
  if stage not in STAGES:
    known = [*STAGES, *COMMANDS]
    raise UsageError(
      f'unknown stage {stage!r}{nearest(stage, known)} '
      '(`lambda-vit --help` lists all)'
    )
  rest = ['--print_config' if a == '--print-config' else a for a in rest]
  # --config FILE as well as --config=FILE.
  for index, argument in enumerate(rest):
    if argument in ('--config', '-config') and index + 1 < len(rest):
      rest[index : index + 2] = [f'--config={rest[index + 1]}']
      break
  rest = [
    f'--config={find_config(argument.partition("=")[2])}'
    if argument.startswith('--config=')
    else argument
    for argument in rest
  ]
  try:
    _check_keys(rest)
    values, positional = _read_flags(rest)
    config = values.config
  except UsageError:
    raise
  except Exception as error:
    # absl, ml_collections and the config file itself raise many kinds.
    raise UsageError(_explain(error, rest)) from error
  if positional:
    raise UsageError(f'unexpected argument {positional[0]!r}')
  if config is None:
    raise UsageError(f'{stage}: --config=FILE.py is needed')
  if not (values.workdir or values.print_config):
    raise UsageError(f'{stage}: --workdir=DIR is needed')
  _apply_budget_flags(config, rest)
  is_job(values)
  return stage, config, values


def as_flags(config: Any) -> list[str]:
  """Returns every value of a config as the flag that sets it, for a shell."""
  flat = config_differences.flatten(config.to_dict())
  return [as_flag(key, value) for key, value in sorted(flat.items())]


def as_flag(key: str, value: Any) -> str:
  """A value of a config as the flag that sets it, for a shell."""
  return shlex.quote(f'--config.{key}={_literal(value)}')


def _literal(value: Any) -> str:
  """A value as `config_flags` parses it."""
  if isinstance(value, list):
    return repr(tuple(value))
  return str(value)


def _read_flags(
  arguments: Sequence[str],
) -> tuple[flags.FlagValues, list[str]]:
  """Returns the values of the flags, and the arguments that are none."""
  values = _define_flags(list(arguments))
  with warnings.catch_warnings():
    # ml_collections loads config files in the old way.
    warnings.filterwarnings('ignore', 'the load_module', DeprecationWarning)
    return values, values(['lambda-vit', *arguments])[1:]


def _check_keys(arguments: Sequence[str]) -> None:
  """Refuses keys that are no names, which ml_collections cannot parse.

  Raises:
    UsageError: names the key, and the nearest.
  """
  for argument in arguments:
    flag = argument.partition('=')[0]
    key = flag.removeprefix('--config.')
    if key != flag and not re.fullmatch(r'[\w.\[\]]+', key):
      hint = _nearest_keys(key.replace('-', '_'), full_keys(arguments))
      raise UsageError(f'{flag}: the config has no key {key!r}{hint}')


def _explain(error: Exception, arguments: Sequence[str]) -> str:
  """Returns one line for an error of the flag libraries."""
  text = str(error.args[0] if error.args else error).strip()
  if isinstance(error, KeyError | AttributeError):
    found = re.search(r'[A-Za-z_]\w*', text)
    key = found[0] if found else text
    guess = re.search(r'[Dd]id you mean "([^"]+)"', text)
    where, hint = _unknown_key(key, arguments)
    if guess:
      hint = f'; did you mean {guess[1]}?'
    return f'{where}: the config has no key {key!r}{hint}'
  if isinstance(error, SyntaxError):
    return f'--config={error.filename}: {error.msg} in line {error.lineno}'
  if 'Traceback' in text:
    # ml_collections quotes the traceback of the config file.
    where = text.splitlines()[0].partition(': Error')[0]
    text = f'{where}: {text.splitlines()[-1].partition(": ")[2]}'
  return _in_our_words(' '.join(text.split()))


def _in_our_words(text: str) -> str:
  """Replaces Python's reason why a value is of another kind than its key."""
  for reason, ours in (
    (r'invalid literal for int\(\) with base 10: .*', 'is not a whole number'),
    (r'could not convert string to float: .*', 'is not a number'),
    (r"\('Non-boolean argument to boolean flag', .*", 'give True or False'),
  ):
    text = re.sub(f'^flag (--config[^:]*): {reason}', rf'\1: {ours}', text)
  return text


def _unknown_key(key: str, arguments: Sequence[str]) -> tuple[str, str]:
  """Returns the flag with an unknown key, and the nearest known keys."""
  prefix = '--config.'
  named = [a.partition('=')[0] for a in arguments if a.startswith(prefix)]
  known = full_keys(arguments)
  for flag in named:
    wanted = flag.removeprefix(prefix)
    if wanted not in known:
      return flag, _nearest_keys(wanted, known)
  return next((f for f in named if f'.{key}' in f), key), ''


def _nearest_keys(wanted: str, known: Sequence[str]) -> str:
  """Returns similar keys of the section, of others, else the whole section."""
  section, _, name = wanted.rpartition('.')
  inside = f'{section}.' if section else ''
  beside = [key for key in known if key.startswith(inside)]
  alike = difflib.get_close_matches(
    name, [key.removeprefix(inside) for key in beside], cutoff=0.5
  )
  found = [inside + key for key in alike]
  if not found:
    last = {key.rpartition('.')[2] for key in known}
    alike = difflib.get_close_matches(name, last, n=1, cutoff=0.8)
    found = [key for key in known if key.rpartition('.')[2] in alike][:3]
  if found:
    return f'; did you mean {", ".join(found)}?'
  if not beside:
    return nearest(wanted, known)
  names = {key.removeprefix(inside).partition('.')[0] for key in beside}
  return f'; {section or "the config"} has {", ".join(sorted(names))}'


def full_keys(arguments: Sequence[str]) -> list[str]:
  """Returns every full key of the config file, `dilute.settle_steps`."""
  files = [a for a in arguments if a.startswith('--config=')]
  values, _ = _read_flags(files)
  config = values.config
  return list(config_differences.flatten(config.to_dict())) if config else []


def _apply_budget_flags(config: Any, arguments: Sequence[str]) -> None:
  """Clears the default of the other budgets where one is set by flag."""
  given = [
    name
    for name in BUDGETS
    if any(
      a.startswith(f'--config.select.{name}=') and not a.endswith('=None')
      for a in arguments
    )
  ]
  if len(given) > 1:
    raise UsageError(
      f'{" and ".join(given)} are both set; give exactly one of '
      f'{", ".join(BUDGETS)}'
    )
  if given:
    for name in BUDGETS:
      if name != given[0]:
        config.select[name] = None


def is_job(values: flags.FlagValues) -> bool:
  """Returns whether this is one of several processes; raises UsageError."""
  return check_flags(
    values.coordinator,
    values.num_processes,
    values.process_id,
    values.distributed,
  )
