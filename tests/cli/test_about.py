"""`help`, `--version`, `completion` and `--print-config`."""

import json
import pathlib
import shlex
import shutil
import subprocess

import pytest

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.about import ABOUT
from lambda_vit_jax.cli.help import COMMANDS, STAGES, help_of

CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'common')
)


def test_version(capsys):
  assert main.main(['--version']) == 0
  assert capsys.readouterr().out == f'lambda-vit {lv.__version__}\n'


@pytest.mark.parametrize('name', ['', 'select', 'predict', *ABOUT])
def test_help_is_a_word_too(name, capsys):
  assert main.main(['help', name] if name else ['help']) == 0
  assert capsys.readouterr().out == help_of(name) + '\n'


def test_a_misspelt_stage_gets_the_nearest(capsys):
  assert main.main(['help', 'selekt']) == 2
  assert 'did you mean select' in capsys.readouterr().err


@pytest.mark.parametrize('name', CONFIGS)
def test_printed_flags_make_the_same_config(name):
  """Every value, whatever its type, comes back through its own flag."""
  _, config, _ = flags.parse(['run', f'--config={name}', '--workdir=x'])
  printed = [shlex.split(line)[0] for line in flags.as_flags(config)]
  _, again, _ = flags.parse(
    ['run', f'--config={name}', '--workdir=x', *_without_budgets(printed)]
  )
  assert again.to_dict() == config.to_dict()


def _without_budgets(printed):
  """All but the budgets that are empty: one alone may be named."""
  return [
    flag
    for flag in printed
    if not flag.startswith(
      tuple(f'--config.select.{name}=' for name in flags.BUDGETS)
    )
    or not flag.endswith('=None')
  ]


def test_print_config_runs_nothing(capsys, tmp_path):
  line = ['run', '--config=digits', '--print-config', '--config.seed=7']
  assert main.main(line) == 0
  assert '--config.seed=7' in capsys.readouterr().out.splitlines()
  workdir = tmp_path / 'run'
  assert main.main([*line, '--json', f'--workdir={workdir}']) == 0
  assert json.loads(capsys.readouterr().out)['seed'] == 7
  assert not workdir.exists()


@pytest.mark.parametrize('name', CONFIGS)
def test_a_printed_config_is_taken_as_flags(capsys, name):
  """Also the budgets that are not in force, which are printed as None."""
  line = ['run', f'--config={name}', '--print-config']
  assert main.main(line) == 0
  printed = capsys.readouterr().out
  assert main.main([*line, *shlex.split(printed)]) == 0
  assert capsys.readouterr().out == printed


def test_another_shell_is_refused(capsys):
  assert main.main(['completion', 'fish']) == 2
  assert 'bashcompinit' in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which('bash'), reason='no bash here')
@pytest.mark.parametrize(
  'words, expected',
  [
    (['sel'], ['select']),
    (['c'], ['check-data', 'completion', 'compress']),
    (
      ['select', '--config.select.num_l'],
      ['--config.select.num_layers='],
    ),
  ],
  ids=str,
)
def test_bash_completes(words, expected, capsys):
  assert main.main(['completion', 'bash']) == 0
  script = capsys.readouterr().out
  line = ' '.join(shlex.quote(word) for word in ('lambda-vit', *words))
  script += (
    f'\nCOMP_WORDS=({line}); COMP_CWORD={len(words)}\n'
    '_lambda_vit 2>/dev/null; printf "%s\\n" "${COMPREPLY[@]}"'
  )
  done = subprocess.run(
    ['bash', '-c', script], capture_output=True, text=True, check=True
  )
  found = sorted(done.stdout.splitlines())
  assert found == expected
  assert (
    set(found) <= {*STAGES, *COMMANDS, 'completion'} or '--config' in words[-1]
  )
