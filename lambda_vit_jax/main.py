"""The command line: flags, the config file, and which stage runs.

Nothing heavy is imported before the flags are known to be right, so that
`--help` and a typo answer at once.
"""

import difflib
import errno
import json
import logging
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.cli import help as usage_lib
from lambda_vit_jax.core.errors import (
  LambdaVitError,
  StoppedError,
  UsageError,
  nearest,
)
from lambda_vit_jax.runtime import supervise

STAGES = {
  'run': 'all stages, from the first unfinished one on',
  'pretrain': 'a dense model, from --config.init weights or from scratch',
  'analyze': 'entropy per layer, and the spectrum of features',
  'select': 'which attention layers go (NOSE, or another criterion)',
  'linearize': 'affine maps instead of those layers, without training',
  'dilute': 'λ from 1 to 0 over those layers, then training without them',
  'export': 'the pruned parameter tree and portable formats',
  'evaluate': 'exact accuracy of dense, pruned and exported',
  'benchmark': 'sizes and speed, dense against pruned in one run',
  'report': 'one self-contained page with the plots and tables',
}

COMMANDS = {
  'predict': '--model=DIR IMAGE...  the five best classes of each image',
  'models': '[--filter=TEXT]  the table of variants',
  'check-data': 'SOURCE  reads a data set once and says what it found',
}


def usage() -> str:
  """The help text of the whole program."""
  return usage_lib.overview(STAGES, COMMANDS)


def find_config(path: str) -> str:
  """A config file where it is, else of the same name in the package."""
  name, colon, argument = path.partition(':')
  if not pathlib.Path(name).exists():
    packaged = (
      pathlib.Path(__file__).parent / 'configs' / name.removeprefix('configs/')
    )
    source = pathlib.Path(__file__).parents[1] / name
    for candidate in (packaged, source):
      if candidate.exists():
        return f'{candidate}{colon}{argument}'
    raise UsageError(
      f'--config={name}: no such file; configs/digits.py is one to start from'
    )
  return path


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
  flags.DEFINE_string('workdir', None, 'Folder.', flag_values=values)
  flags.DEFINE_string(
    'coordinator', None, 'HOST:PORT of process 0.', flag_values=values
  )
  for name, text in (
    ('num_processes', 'Processes of the job.'),
    ('process_id', 'Which of them this is, from 0.'),
  ):
    flags.DEFINE_integer(name, None, text, flag_values=values)
  flags.DEFINE_bool(
    'distributed', False, 'Find the job by itself.', flag_values=values
  )
  flags.DEFINE_bool('json', False, 'JSON on stdout.', flag_values=values)
  flags.DEFINE_bool('quiet', False, 'No progress.', flag_values=values)
  flags.DEFINE_bool('debug', False, 'Tracebacks.', flag_values=values)
  return values


def parse(argv: Sequence[str]) -> tuple[str, Any, flags.FlagValues]:
  """The stage, its config and the flags.

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
  values = _define_flags(rest)
  try:
    positional = values(['lambda-vit', *rest])[1:]
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
  if not values.workdir:
    raise UsageError(f'{stage}: --workdir=DIR is needed')
  _apply_budget_flags(config, rest)
  _is_job(values)
  return stage, config, values


def _explain(error: Exception, arguments: Sequence[str]) -> str:
  """One line from whatever the flag libraries said."""
  text = str(error.args[0] if error.args else error).strip()
  if isinstance(error, KeyError | AttributeError):
    found = re.search(r'[A-Za-z_]\w*', text)
    key = found[0] if found else text
    guess = re.search(r'[Dd]id you mean "([^"]+)"', text)
    where, hint = _unknown_key(key, arguments)
    if guess:
      hint = f'; did you mean {guess[1]}?'
    return f'{where}: the config has no key {key!r}{hint}'
  if 'Traceback' in text:
    # ml_collections quotes the traceback of the config file.
    where = text.splitlines()[0].partition(': Error')[0]
    text = f'{where}: {text.splitlines()[-1].partition(": ")[2]}'
  return ' '.join(text.split())


def _unknown_key(key: str, arguments: Sequence[str]) -> tuple[str, str]:
  """The flag that names a key which is not there, and the nearest that are."""
  prefix = '--config.'
  named = [a.partition('=')[0] for a in arguments if a.startswith(prefix)]
  known = _full_keys(arguments)
  for flag in named:
    wanted = flag.removeprefix(prefix)
    if wanted in known:
      continue
    return flag, _nearest_keys(wanted, known)
  return next((f for f in named if f'.{key}' in f), key), ''


def _nearest_keys(wanted: str, known: Sequence[str]) -> str:
  """Keys spelt alike in the section, then in others; else all of it."""
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


def _full_keys(arguments: Sequence[str]) -> list[str]:
  """Every key of the config file as it is, `dilute.settle_steps`."""
  files = [a for a in arguments if a.startswith('--config=')]
  values = _define_flags(files)
  values(['lambda-vit', *files])
  return list(config_values.flatten(values.config.to_dict()))


def _apply_budget_flags(config: Any, arguments: Sequence[str]) -> None:
  """A budget that is set by flag clears the default of the others."""
  given = [
    name
    for name in config_values.BUDGETS
    if any(a.startswith(f'--config.select.{name}=') for a in arguments)
  ]
  if len(given) > 1:
    raise UsageError(
      f'{" and ".join(given)} are both set; give exactly one of '
      f'{", ".join(config_values.BUDGETS)}'
    )
  if given:
    for name in config_values.BUDGETS:
      if name != given[0]:
        config.select[name] = None


def _configure_logging(debug: bool) -> None:
  """Our own lines on stderr; libraries speak up for errors alone."""
  logging.basicConfig(format='%(message)s', level=logging.ERROR)
  logging.getLogger('lambda_vit_jax').setLevel(logging.INFO)
  # Orbax logs each failure of a save with its trace; our line says it once.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(
      logging.ERROR if debug else logging.CRITICAL
    )


def _run_stage(
  stage: str, config: Any, values: flags.FlagValues, argv: Sequence[str]
) -> None:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from lambda_vit_jax.cli import outcome
  from lambda_vit_jax.cli.report.build import print_benchmark, print_results
  from lambda_vit_jax.cli.stages import registry
  from lambda_vit_jax.cli.workdir import Run
  from lambda_vit_jax.runtime import processes, signals, startup
  from lambda_vit_jax.runtime.progress import Reporter

  signals.raise_on_signals()
  startup.keep_memory()
  startup.use_cache()
  reporter = Reporter(values.quiet, processes.is_leader())
  run = Run(config.to_dict(), values.workdir, reporter)
  done = []
  try:
    for name in registry.needed(run) if stage == 'run' else (stage,):
      start = time.perf_counter()
      ran = registry.run_stage(run, name)
      done.append((name, ran, time.perf_counter() - start))
  except Exception:
    run.withdraw()
    raise
  finally:
    run.metrics.close()
  if not run.leader:
    return
  if values.json:
    print(json.dumps(outcome.to_json(run, stage, done)))
    return
  if stage in ('run', 'report'):
    print_results(run.workdir)
    return
  if stage == 'benchmark':
    print_benchmark(run.workdir)
  if not values.quiet:
    following = outcome.next_stage(run, stage)
    if following:
      run.reporter.say(outcome.hint(following, argv))


def _is_job(values: flags.FlagValues) -> bool:
  """Whether this is one of several processes; raises UsageError."""
  return supervise.check_flags(
    values.coordinator,
    values.num_processes,
    values.process_id,
    values.distributed,
  )


def _run_in_job(
  stage: str, config: Any, values: flags.FlagValues, argv: Sequence[str]
) -> int:
  """One process of a job: a child does the work; see `supervise`."""

  def work() -> int:
    # What libraries log about a broken job is replaced by our line.
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    from lambda_vit_jax.runtime import processes

    def join_and_run() -> None:
      processes.join(
        values.coordinator, values.num_processes, values.process_id
      )
      supervise.joined()
      _run_stage(stage, config, values, argv)

    code = _guarded(argv, join_and_run)
    supervise.announce(code)
    processes.leave(failed=code != 0)
    return code

  return supervise.run(work, values.process_id, values.num_processes)


def _run_command(name: str, arguments: Sequence[str]) -> None:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from lambda_vit_jax.cli import commands
  from lambda_vit_jax.runtime import signals

  signals.raise_on_signals()
  commands.COMMANDS[name](arguments)


def _help(argv: Sequence[str]) -> str | None:
  """The help that was asked for, if any was."""
  if not any(a in ('--help', '-h', '--helpfull') for a in argv):
    return None
  return usage_lib.help_of(argv[0]) if argv[0] in usage_lib.HELP else usage()


def _fail(argv: Sequence[str], text: str, exit_code: int) -> int:
  """Says what went wrong: a line on stderr, and JSON where that was asked."""
  print(f'lambda-vit: {text}', file=sys.stderr)
  if '--json' in argv:
    print(json.dumps({'error': text, 'exit_code': exit_code}))
  return exit_code


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns the exit code (METHOD, section 7)."""
  if not argv:
    print(usage())
    return UsageError.exit_code
  text = _help(argv)
  if text is not None:
    print(text)
    return 0
  _configure_logging('--debug' in argv)
  if argv[0] in COMMANDS:
    rest = [a for a in argv[1:] if a != '--debug']
    return _guarded(argv, lambda: _run_command(argv[0], rest))
  parsed: list[tuple[str, Any, flags.FlagValues]] = []
  code = _guarded(argv, lambda: parsed.append(parse(argv)))
  if code:
    return code
  if _is_job(parsed[0][2]):
    return _run_in_job(*parsed[0], argv)
  return _guarded(argv, lambda: _run_stage(*parsed[0], argv))


def _guarded(argv: Sequence[str], action: Callable[[], None]) -> int:
  """Does it, and turns what goes wrong into one line and an exit code."""
  debug = '--debug' in argv
  try:
    action()
  except (LambdaVitError, StoppedError) as error:
    if debug:
      traceback.print_exc()
    return _fail(argv, str(error), error.exit_code)
  except BrokenPipeError:
    # The reader (`head`, say) has seen enough; nothing is left to say.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
  except Exception as error:
    if debug:
      traceback.print_exc()
    missing = storage_package(error)
    return _fail(argv, str(missing or _describe(error)), 1)
  return 0


def storage_package(error: Exception) -> LambdaVitError | None:
  """What to install where etils wants a package for `gs://` or `s3://`."""
  for package, scheme, remedy in (
    ('gcsfs', 'gs', "'lambda_vit_jax[gcs]'"),
    ('s3fs', 's3', 's3fs'),
  ):
    if isinstance(error, ImportError) and package in str(error):
      return LambdaVitError(
        f'{scheme}:// paths need the package {package}; install it: pip '
        f'install {remedy}'
      )
  return None


def _describe(error: Exception) -> str:
  """One line for an error that is not ours."""
  full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  if isinstance(error, OSError) and error.errno in full:
    return (
      f'{error.filename or "a file"}: cannot be written ({error.strerror}); '
      'what was saved before is intact, free some space and run the command '
      'again'
    )
  if 'jax' in sys.modules:
    from lambda_vit_jax.runtime import processes

    if processes.is_lost(error):
      return processes.lost_line()
  kind = type(error).__name__
  text = ' '.join(str(error).split())[:300]
  return f'{kind}: {text} (run again with --debug for a traceback)'


def run() -> None:
  """The console script."""
  if '--debug' not in sys.argv:
    # What libraries' threads say behind a failed save or a damaged file; the
    # error itself is ours.
    sys.unraisablehook = lambda _: None
  sys.exit(main(sys.argv[1:]))


if __name__ == '__main__':
  run()
