"""What a person, and a program, read on the terminal."""

import dataclasses
import gc
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import types

import pytest

from lambda_vit_jax import main
from lambda_vit_jax.cli import (
  config_check,
  config_differences,
  flags,
  outcome,
  result_files,
)
from lambda_vit_jax.cli import help as help_lib
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.cli.stage_table import StageSpec
from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.cli.stages.registry import Stage
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.core.schema import Object

ROOT = pathlib.Path(__file__).parents[2]
NAMES = [*flags.STAGES, *flags.COMMANDS]


@pytest.fixture
def argv(tmp_path):
  """A command line whose stages are the ones of `pretend`."""
  return [
    'select',
    f'--config={ROOT}/configs/digits.py',
    f'--workdir={tmp_path}/a run',
  ]


@pytest.fixture
def pretend(monkeypatch):
  """Stages that leave a file, so that the program around them is tested."""

  def stage(name: str) -> Stage:
    def run(run):
      run.path(f'{name}.json').write_text('{"removed": [1]}')

    return Stage(StageSpec(name, '', writes=(f'{name}.json',)), run)

  def fail(run):
    raise LambdaVitError('no luck')

  table = {name: stage(name) for name in ('analyze', 'select', 'export')}
  table['evaluate'] = dataclasses.replace(stage('evaluate'), run=fail)
  monkeypatch.setattr(registry, 'STAGES', table)
  # What `--json` shows is read as everything is, against a schema.
  monkeypatch.setitem(result_files.SCHEMAS, 'select.json', Object())


@pytest.mark.parametrize('name', NAMES)
def test_each_stage_and_command_has_its_help(name, capsys):
  assert main.main([name, '--help']) == 0
  text = capsys.readouterr().out
  assert f'lambda-vit {name}' in text
  assert text.count(f'  lambda-vit {name}') >= 1
  assert '--json' in text
  assert max(map(len, text.splitlines())) < 160


@pytest.mark.parametrize(
  'line', [e for name in flags.STAGES for e in help_lib.HELP[name].examples]
)
def test_examples_are_command_lines_that_parse(line):
  stage, _, _ = flags.parse(shlex.split(line)[1:])
  assert stage in flags.STAGES


def test_examples_do_not_get_into_each_others_way():
  """Those that change a value that binds have a workdir of their own."""
  quickstart = 'runs/digits'
  seen = {}
  for name in flags.STAGES:
    assert 'A workdir keeps one config' in help_lib.help_of(name)
    for line in help_lib.HELP[name].examples:
      words = shlex.split(line)
      _, config, values = flags.parse(words[1:])
      if values.workdir == quickstart:
        plain = flags.parse(['run', *words[2:4]])[1]
        assert not config_differences.differences(
          plain.to_dict(), config.to_dict()
        )
      config_check.check(Settings.from_config(config.to_dict()))
      # Two examples of one stage in one workdir: the same config.
      other = seen.setdefault((name, values.workdir), config.to_dict())
      assert not config_differences.differences(other, config.to_dict())


def test_the_example_from_the_hub_fits_its_config():
  (line,) = [e for e in help_lib.HELP['pretrain'].examples if 'hf-hub' in e]
  _, config, _ = flags.parse(shlex.split(line)[1:])
  assert config.model.variant in config.init


def test_json_is_the_whole_of_stdout(argv, pretend, capsys):
  assert main.main([*argv, '--json', '--quiet']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['stage'] == 'select'
  assert found['result'] == {'removed': [1]}
  # Not `analyze`, which was left out.
  assert found['next'] == 'export'
  assert [row['status'] for row in found['stages']] == ['done']
  assert main.main([*argv, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert [row['status'] for row in found['stages']] == ['already done']


def test_json_reports_errors_too(argv, pretend, capsys):
  assert main.main(['evaluate', *argv[1:], '--json']) == 1
  captured = capsys.readouterr()
  assert json.loads(captured.out) == {'error': 'no luck', 'exit_code': 1}
  assert 'no luck' in captured.err
  assert main.main(['selct', '--json']) == 2
  assert json.loads(capsys.readouterr().out)['exit_code'] == 2
  assert main.main(['predict', '--json', 'x.png']) == 2
  assert json.loads(capsys.readouterr().out)['exit_code'] == 2


def test_the_hint_is_a_command_line_for_the_shell(argv, pretend, capsys):
  assert main.main(argv) == 0
  captured = capsys.readouterr()
  assert captured.out == ''
  hint = captured.err.splitlines()[-1]
  assert hint.startswith('next: lambda-vit export --config=')
  assert shlex.split(hint)[2:] == ['export', *argv[1:]]


def test_a_signal_during_garbage_collection_ends_the_command(
  argv, pretend, monkeypatch, capsys
):
  """An exception raised there is ignored, and the command would exit with 0."""

  def collect(run):
    def callback(phase, info):
      gc.callbacks.remove(callback)
      signal.raise_signal(signal.SIGTERM)

    gc.callbacks.append(callback)
    gc.collect()
    run.path('select.json').write_text('{"removed": [1]}')

  stage = dataclasses.replace(registry.STAGES['select'], run=collect)
  monkeypatch.setitem(registry.STAGES, 'select', stage)
  assert main.main(argv) == 143
  captured = capsys.readouterr()
  (line,) = [x for x in captured.err.splitlines() if 'lambda-vit:' in x]
  assert 'interrupted by SIGTERM' in line
  assert captured.out == ''


def test_quiet_says_nothing(argv, pretend, capsys):
  assert main.main([*argv, '--quiet']) == 0
  captured = capsys.readouterr()
  assert captured.out == captured.err == ''


def test_nothing_follows_the_last_stage(pretend):
  assert outcome.next_stage(types.SimpleNamespace(), 'report') is None
  assert outcome.next_stage(types.SimpleNamespace(), 'run') is None


_PRINT = """
import sys
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.cli.console import stdout_console
reporter = Reporter()
reporter.console.print('[bold red]words[/]')
stdout_console().print('[green]words[/]')
"""


def test_there_are_no_colours_in_a_file():
  done = subprocess.run(
    [sys.executable, '-c', _PRINT], capture_output=True, text=True, check=True
  )
  assert '\x1b' not in done.stdout + done.stderr
  assert 'words' in done.stdout


def test_no_color_is_respected_on_a_terminal(monkeypatch):
  from lambda_vit_jax.runtime.progress import Reporter

  for name in ('NO_COLOR', 'FORCE_COLOR'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('TERM', 'xterm-256color')
  monkeypatch.setattr('rich.console.Console.is_terminal', True)
  assert Reporter().console.color_system is not None
  monkeypatch.setenv('NO_COLOR', '1')
  assert Reporter().console.no_color


def test_a_reader_that_leaves_early_is_no_error():
  code = 'from lambda_vit_jax.main import run; run()'
  command = f'{shlex.quote(sys.executable)} -c "{code}" models | head -n 1'
  done = subprocess.run(
    ['bash', '-c', command], capture_output=True, text=True, check=True
  )
  assert done.stderr == ''
