"""`lambda-vit`: parse the command line, run a stage, return an exit code.

Nothing heavy is imported before the flags are parsed, so that `--help` and a
typo are answered at once.
"""

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from lambda_vit_jax.cli.about import ABOUT
from lambda_vit_jax.cli.flags import as_flags, is_job, parse
from lambda_vit_jax.cli.help import COMMANDS, help_of
from lambda_vit_jax.core.errors import (
  LambdaVitError,
  PartialError,
  StoppedError,
  UsageError,
)
from lambda_vit_jax.core.text import printable
from lambda_vit_jax.runtime import interrupts, supervise


class _OneLine(logging.Formatter):
  """Our own messages are one line each, whatever names are in them."""

  def format(self, record: logging.LogRecord) -> str:
    text = super().format(record)
    own = record.name.startswith('lambda_vit_jax')
    return '\n'.join(map(printable, [text] if own else text.splitlines()))


def _configure_logging(debug: bool) -> None:
  """Prints our own lines on stderr, and of libraries only errors."""
  logging.basicConfig(level=logging.ERROR)
  for handler in logging.getLogger().handlers:
    if type(handler) is logging.StreamHandler:
      handler.setFormatter(_OneLine('%(message)s'))
  logging.getLogger('lambda_vit_jax').setLevel(logging.INFO)
  # Orbax logs each failed save with its trace; our line reports it once.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(
      logging.ERROR if debug else logging.CRITICAL
    )


def _run_stage(
  stage: str, config: Any, values: flags.FlagValues, argv: Sequence[str]
) -> None:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from lambda_vit_jax.cli import outcome, training_check
  from lambda_vit_jax.cli.stages import registry
  from lambda_vit_jax.cli.workdir import Run
  from lambda_vit_jax.runtime import processes, startup
  from lambda_vit_jax.runtime.progress import Reporter

  startup.keep_memory()
  startup.use_cache()
  startup.check_devices()
  reporter = Reporter(values.quiet, processes.is_leader())
  # A report may be looked at while another job is running.
  alone = stage != 'report'
  run = Run(config.to_dict(), values.workdir, reporter, lock=alone)
  done = []
  try:
    names = registry.needed(run) if stage == 'run' else (stage,)
    training_check.check(run, names)
    for number, name in enumerate(names, 1):
      start = time.perf_counter()
      place = f', stage {number} of {len(names)}' if len(names) > 1 else ''
      ran = registry.run_stage(run, name, place)
      done.append((name, ran, time.perf_counter() - start))
  except Exception:
    run.withdraw()
    raise
  finally:
    run.close()
  if run.leader:
    outcome.show(run, stage, done, argv, as_json=values.json)


def _run_in_job(
  stage: str, config: Any, values: flags.FlagValues, argv: Sequence[str]
) -> int:
  """Runs one process of a job: a child does the work; see `supervise`."""

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

  commands.COMMANDS[name](arguments)


def _print_config(stage: str, config: Any, values: flags.FlagValues) -> None:
  if values.json:
    print(json.dumps(config.to_dict()))
  else:
    print('\n'.join(as_flags(config)))


def _fail(argv: Sequence[str], text: str, exit_code: int) -> int:
  """Prints an error: a line on stderr, and JSON with --json."""
  text = printable(text)
  print(printable(f'lambda-vit: {text}'), file=sys.stderr)
  if '--json' in argv:
    print(json.dumps({'error': text, 'exit_code': exit_code}))
  return exit_code


def main(argv: Sequence[str]) -> int:
  """Runs one command; returns the exit code."""
  if not argv:
    return _guarded(argv, lambda: print(help_of(''))) or UsageError.exit_code
  if any(a in ('--help', '-h', '--helpfull') for a in argv):
    return _guarded(argv, lambda: print(help_of(argv[0])))
  if argv[0] in ABOUT:
    return _guarded(argv, lambda: print(ABOUT[argv[0]](argv[1:])))
  _configure_logging('--debug' in argv)
  if argv[0] in COMMANDS or _without_config(argv):
    rest = [a for a in argv[1:] if a != '--debug']
    return _guarded(argv, lambda: _run_command(argv[0], rest))
  parsed: list[tuple[str, Any, flags.FlagValues]] = []
  code = _guarded(argv, lambda: parsed.append(parse(argv)))
  if code:
    return code
  if parsed[0][2].print_config:
    return _guarded(argv, lambda: _print_config(*parsed[0]))
  if is_job(parsed[0][2]):
    return _run_in_job(*parsed[0], argv)
  return _guarded(argv, lambda: _run_stage(*parsed[0], argv))


def _without_config(argv: Sequence[str]) -> bool:
  """Whether this is `benchmark --model=DIR`, which is a stage otherwise."""
  names = [argument.partition('=')[0] for argument in argv]
  return argv[0] == 'benchmark' and '--model' in names


def _guarded(argv: Sequence[str], action: Callable[[], None]) -> int:
  """Runs `action`; turns an error into one line and an exit code."""
  debug = '--debug' in argv

  def end(error: StoppedError) -> int:
    return _fail(argv, str(error), error.exit_code)

  try:
    with interrupts.watch(end):
      action()
      _write_out()
  except (LambdaVitError, StoppedError) as error:
    if debug:
      traceback.print_exc()
    partial = isinstance(error, PartialError)
    shown = [] if partial else argv
    return _fail(shown, str(error), error.exit_code)
  except BrokenPipeError:
    # The reader (`head`, say) has closed the pipe.
    _discard_output()
    return 1
  except Exception as error:
    if debug:
      traceback.print_exc()
    missing = storage_package(error)
    return _fail(argv, str(missing or _describe(error)), 1)
  return 0


def _write_out() -> None:
  """Writes what is buffered for stdout, while a failure can be reported."""
  # There is none where it was closed, `>&-`.
  if sys.stdout is None:
    return
  try:
    sys.stdout.flush()
  except OSError as error:
    _discard_output()
    # Known here alone: after this, stdout takes everything.
    error.filename = 'stdout'
    raise


def _stdout_fails() -> bool:
  """Whether stdout takes no more text; if so, it is discarded from now on.

  An error of a file has its name, but often not one of writing to it.
  """
  try:
    print(flush=True)
  except OSError:
    _discard_output()
    return True
  return False


def _discard_output() -> None:
  """Sends stdout nowhere: the interpreter writes it out again when it exits."""
  with contextlib.suppress(OSError, ValueError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def storage_package(error: Exception) -> LambdaVitError | None:
  """Returns what to install for `gs://` or `s3://` paths, where that is missing."""
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
  """Returns one line for an error that is not ours."""
  full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  if isinstance(error, OSError) and error.errno in full:
    where = error.filename or ('stdout' if _stdout_fails() else 'a file')
    return (
      f'{where}: cannot be written ({error.strerror}); '
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
  for stream in (sys.stdout, sys.stderr):
    # A terminal in ASCII or Latin-1 has no λ: it shows \\u03bb.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  if '--debug' not in sys.argv:
    # Hides what libraries' threads print after a failed save or on a damaged
    # file; our own error line reports it.
    sys.unraisablehook = lambda _: None
  # Until our handlers are there, and after them, Ctrl-C ends the process as
  # SIGTERM does, without a traceback.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  sys.exit(main(sys.argv[1:]))


if __name__ == '__main__':
  run()
