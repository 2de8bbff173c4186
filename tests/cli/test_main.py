"""The command line: valid arguments reach the code, others get one line."""

import subprocess
import sys

import pytest

from lambda_vit_jax import main
from lambda_vit_jax.cli import flags
from lambda_vit_jax.core.errors import UsageError

GOOD = ['select', '--config=configs/digits.py', '--workdir=unused']


def test_overrides_reach_the_config():
  stage, config, _ = flags.parse([*GOOD, '--config.select.num_layers=6'])
  assert stage == 'select'
  assert config.select.num_layers == 6


def test_config_arguments_work():
  short = flags.parse(['run', '--config=configs/digits.py:runlocal', *GOOD[2:]])
  assert short[1].dilute.settle_steps == 2


@pytest.mark.parametrize('text, value', [('30ep', '30ep'), ('30', 30)])
def test_fields_of_mixed_type_take_epochs_and_steps(text, value):
  config = flags.parse([*GOOD, f'--config.dilute.dilution_steps={text}'])[1]
  assert config.dilute.dilution_steps == value


def test_tuples_survive_the_command_line():
  config = flags.parse([*GOOD, '--config.select.layers=(1, 2)'])[1]
  assert config.select.layers == (1, 2)


def test_a_budget_by_flag_clears_the_default_of_the_others():
  config = flags.parse([*GOOD, '--config.select.removal_ratio=0.5'])[1]
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
    (['select', '--config=digts', GOOD[2]], 'did you mean digits'),
    (['run', '--config=configs/digits.py:fast', GOOD[2]], "'fast'"),
    ([*GOOD, '--config.select.num_layer=6'], 'did you mean num_layers'),
    ([*GOOD, '--config.selct.num_layers=6'], 'did you mean select'),
    # Spelt like nothing: all that there is.
    ([*GOOD, '--config.lr=1'], r'lr: .* has analyze, batch_size, benchmark,'),
    (
      [*GOOD, '--config.dilute.xyzzy_=1'],
      r"--config\.dilute\.xyzzy_: .*no key 'xyzzy_'; dilute has .*b1, b2,",
    ),
    # Another section's key of the same name is not the one that is wrong.
    (
      [*GOOD, '--config.pretrain.steps=5', '--config.dilute.steps=10'],
      r'--config\.dilute\.steps: .*did you mean .*dilute\.settle_steps',
    ),
    ([*GOOD, '--config.batch_size=many'], 'batch_size'),
    # A dash for an underscore, and what is no name at all.
    (
      [*GOOD, '--config.batch-size=4'],
      r"--config\.batch-size: .*no key 'batch-size'; did you mean batch_size",
    ),
    (
      [*GOOD, '--config.select.num-layers=2'],
      r'--config\.select\.num-layers: .*did you mean select\.num_layers',
    ),
    ([*GOOD, '--config.batch size=4'], "has no key 'batch size'"),
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
    flags.parse(argv)
  assert main.main(argv) == 2
  if argv:
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'Traceback' not in error


@pytest.mark.parametrize(
  'message, expected',
  [
    # The first two are messages of etils.
    (
      'Please install gcsfs to access Google Storage',
      'gs:// paths need the package gcsfs; install it: pip install '
      "'lambda_vit_jax[gcs]'",
    ),
    ('Install s3fs to access S3', 's3:// paths need the package s3fs'),
    ('No module named jaxlib', 'ImportError: No module named jaxlib'),
  ],
)
def test_a_missing_package_for_remote_paths_is_named(
  monkeypatch, capsys, message, expected
):
  def fail(*arguments):
    raise ImportError(message)

  monkeypatch.setattr(main, '_run_stage', fail)
  assert main.main(GOOD) == 1
  assert expected in capsys.readouterr().err


@pytest.mark.parametrize('argv, silent', [([], True), (['--debug'], False)])
def test_threads_of_libraries_are_silent_but_for_debug(
  monkeypatch, argv, silent
):
  monkeypatch.setattr(main, 'main', lambda argv: 0)
  monkeypatch.setattr(sys, 'unraisablehook', sys.__unraisablehook__)
  monkeypatch.setattr(sys, 'argv', ['lambda-vit', *argv])
  with pytest.raises(SystemExit):
    main.run()
  assert (sys.unraisablehook is not sys.__unraisablehook__) == silent


@pytest.mark.parametrize('stage', flags.STAGES)
def test_help_names_every_stage(capsys, stage):
  assert main.main(['--help']) == 0
  assert f'  {stage} ' in capsys.readouterr().out


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
