"""The command line: what is right reaches the code, what is wrong says so."""

import subprocess
import sys

import pytest

from lambda_vit_jax import main
from lambda_vit_jax.errors import UsageError

GOOD = ['select', '--config=configs/digits.py', '--workdir=unused']


def test_overrides_reach_the_config():
  stage, config, _ = main.parse([*GOOD, '--config.select.num_layers=6'])
  assert stage == 'select'
  assert config.select.num_layers == 6


def test_config_arguments_work():
  short = main.parse(['run', '--config=configs/digits.py:runlocal', *GOOD[2:]])
  assert short[1].dilute.settle_steps == 2


def test_fields_of_mixed_type_take_epochs_and_steps():
  for text, value in (('30ep', '30ep'), ('30', 30)):
    config = main.parse([*GOOD, f'--config.dilute.dilution_steps={text}'])[1]
    assert config.dilute.dilution_steps == value


def test_tuples_survive_the_command_line():
  config = main.parse([*GOOD, '--config.select.layers=(1, 2)'])[1]
  assert config.select.layers == (1, 2)


def test_a_budget_by_flag_clears_the_default_of_the_others():
  config = main.parse([*GOOD, '--config.select.removal_ratio=0.5'])[1]
  assert config.select.num_layers is None
  assert config.select.removal_ratio == 0.5


@pytest.mark.parametrize(
  'argv, message',
  [
    ([], 'no stage given'),
    (['selct', *GOOD[1:]], 'did you mean select'),
    (GOOD[:2], '--workdir=DIR is needed'),
    (['select', GOOD[2]], '--config=FILE.py is needed'),
    (['select', '--config=nowhere.py', GOOD[2]], 'no such file'),
    (['run', '--config=configs/digits.py:fast', GOOD[2]], "'fast'"),
    ([*GOOD, '--config.select.num_layer=6'], 'did you mean num_layers'),
    ([*GOOD, '--config.selct.num_layers=6'], 'did you mean select'),
    ([*GOOD, '--config.batch_size=many'], 'batch_size'),
    ([*GOOD, '--wrkdir=x'], 'workdir'),
    ([*GOOD, 'extra'], "unexpected argument 'extra'"),
    (
      [
        *GOOD,
        '--config.select.num_layers=2',
        '--config.select.removal_ratio=0.5',
      ],
      'num_layers and removal_ratio are both set',
    ),
  ],
)
def test_usage_errors_are_one_line_and_exit_2(argv, message, capsys):
  with pytest.raises(UsageError, match=message):
    main.parse(argv)
  assert main.main(argv) == 2
  if argv:
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'Traceback' not in error


def test_help_names_every_stage(capsys):
  assert main.main(['--help']) == 0
  text = capsys.readouterr().out
  for stage in main.STAGES:
    assert f'  {stage} ' in text


def test_help_imports_nothing_heavy():
  code = (
    'import sys; from lambda_vit_jax.main import main; main(["--help"]);'
    'heavy = {"jax", "numpy", "flax", "matplotlib", "tensorflow", "torch"};'
    'sys.exit(len(heavy & set(sys.modules)))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
