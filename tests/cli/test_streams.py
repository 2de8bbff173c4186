"""What stdout and stderr receive: any encoding, any name, any reader."""

import io
import logging
import os
import subprocess
import sys

import jax
import pytest
import rich.table

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import console
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.core.tables import Table
from lambda_vit_jax.runtime import startup
from lambda_vit_jax.runtime.progress import Reporter

# Clears the screen, names the window, fakes a line; looks like markup of rich.
HOSTILE = '\x1b[2J\x1b]0;x\x07\nlambda-vit: done [/] [red] :smile: \u202e'
SHOWN = r'\x1b[2J\x1b]0;x\x07\nlambda-vit: done [/] [red] :smile: \u202e'


def start(*arguments, **options):
  """The program in a process of its own; jax is not imported."""
  return subprocess.run(
    [sys.executable, '-m', 'lambda_vit_jax', *arguments],
    stderr=subprocess.PIPE,
    timeout=60,
    check=False,
    **options,
  )


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_help_fits_every_encoding(encoding):
  env = os.environ | {'PYTHONIOENCODING': encoding}
  done = start('--help', stdout=subprocess.PIPE, env=env)
  assert (done.returncode, done.stderr) == (0, b'')
  wanted = 'λ' if encoding == 'utf-8' else r'\u03bb'
  assert f'{wanted} from 1 to 0' in done.stdout.decode(encoding)


def test_a_closed_pipe_is_no_traceback():
  reading, writing = os.pipe()
  os.close(reading)
  done = start('--help', stdout=writing)
  os.close(writing)
  assert (done.returncode, done.stderr) == (1, b'')


@pytest.mark.parametrize('unbuffered', ['', '1'])
@pytest.mark.parametrize('arguments', [('--help',), ('models', '--json')])
def test_a_full_disk_is_one_line(arguments, unbuffered):
  """Whether the text fails as it is printed, or when it is written at the end."""
  env = os.environ | {'PYTHONUNBUFFERED': unbuffered}
  with open('/dev/full', 'wb') as full:
    done = start(*arguments, stdout=full, env=env)
  assert done.returncode == 1
  assert done.stderr.count(b'\n') == 1
  assert b'stdout: cannot be written (No space left' in done.stderr


def test_warnings_as_errors_end_nothing():
  """ml_collections loads the config in a deprecated way."""
  env = os.environ | {'PYTHONWARNINGS': 'error'}
  done = start('select', '--config=configs/digits.py', env=env)
  assert done.returncode == 2
  assert done.stderr == b'lambda-vit: select: --workdir=DIR is needed\n'


def test_warnings_as_errors_after_the_flags(recwarn):
  """The filter lasts for the config file alone."""
  from lambda_vit_jax.cli import flags

  flags.parse(['run', '--config=configs/digits.py', '--workdir=x'])
  assert not recwarn.list


def test_an_error_line_is_one_line(capsys):
  assert main.main([f'select{HOSTILE}', '--json']) == 2
  captured = capsys.readouterr()
  assert captured.err.count('\n') == 1
  assert captured.err.strip().isprintable()
  assert r'\x1b[2J' in captured.err
  assert captured.out.strip().isprintable()


def test_a_long_error_line_is_cut(capsys):
  assert main.main(['x' * 5000]) == 2
  assert len(capsys.readouterr().err) == 1001


def test_messages_are_one_line(capsys):
  reporter = Reporter()
  reporter.say(HOSTILE)
  reporter.warn(HOSTILE)
  assert capsys.readouterr().err == f'{SHOWN}\nwarning: {SHOWN}\n'


def test_log_lines_are_one_line():
  formatter = main._OneLine('%(message)s')
  for name, text in (('lambda_vit_jax.a', SHOWN), ('jax', SHOWN)):
    record = logging.LogRecord(name, 30, '', 1, '%s', (HOSTILE,), None)
    shown = formatter.format(record)
    if name == 'jax':
      # A library may have written several lines, of which none is ours.
      text = text.replace(r'\n', '\n', 1)
    assert shown == text


def test_tables_hold_names_as_they_are(capsys):
  console.print_table(('name', 'value'), [(HOSTILE, '[bold]')])
  console.stdout_console().print(Table(HOSTILE, ('a',), [(HOSTILE,)], HOSTILE))
  table = rich.table.Table('name')
  table.add_row('[/]')
  console.stdout_console().print(table)
  out = capsys.readouterr().out
  assert out.count(SHOWN) == 4
  assert out.replace('\n', '').isprintable()
  shown = (
    repr(Table(HOSTILE, ('a',), [(HOSTILE,)])),
    Table(HOSTILE, ('a',), [(HOSTILE,)])._repr_html_(),
  )
  assert '\x1b' not in ''.join(shown)


def test_an_ascii_terminal_gets_tables(monkeypatch):
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, 'ascii', errors='backslashreplace')
  monkeypatch.setattr(sys, 'stdout', stream)
  console.print_table(('λ', '×'), [('日本', '1')])
  console.print_line('λ')
  stream.flush()
  assert rb'\u03bb' in raw.getvalue()
  assert raw.getvalue().isascii()


def test_class_names_do_not_reach_the_terminal_raw(
  monkeypatch, tmp_path, capsys
):
  from PIL import Image

  names = (HOSTILE, 'x' * 5000, '[red]')
  model = lv.create_model('vit_nano_patch2_8', num_classes=3)
  monkeypatch.setattr(
    load,
    'load_pretrained',
    lambda where, variant: model.replace(class_names=names),
  )
  Image.new('L', (8, 8)).save(tmp_path / 'a.png')
  assert main.main(['predict', '--model=x', str(tmp_path / 'a.png')]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 4
  assert all(line.isprintable() and len(line) <= 1000 for line in lines)
  assert any('lambda-vit: done [/] [red] :smile:' in line for line in lines)


@pytest.mark.parametrize(
  'error, reason',
  [
    (AssertionError(), 'AssertionError'),
    (RuntimeError("Backend 'cuda'\nis not\nthere"), "Backend 'cuda' is not"),
  ],
)
def test_a_platform_without_its_plugin_is_one_line(
  monkeypatch, capsys, error, reason
):
  def fail():
    raise error

  monkeypatch.setattr(jax, 'local_devices', fail)
  with pytest.raises(LambdaVitError, match='JAX_PLATFORMS=') as caught:
    startup.check_devices()
  assert reason in str(caught.value)
  assert main.main(['predict', '--model=x', 'a.png']) == 1
  line = capsys.readouterr().err
  assert line.count('\n') == 1
  assert 'install' in line
