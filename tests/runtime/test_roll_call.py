"""What a process that waits for its job says of the others."""

import contextlib
import os
import socket

import jax
import pytest

from lambda_vit_jax.runtime import processes, roll_call


@contextlib.contextmanager
def listening(clients):
  """A port of this machine with so many open connections to it."""
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
    port = server.getsockname()[1]
    for _ in range(clients):
      peer = socket.create_connection(('127.0.0.1', port))
      stack.enter_context(peer)
      stack.enter_context(server.accept()[0])
    yield port


@pytest.mark.parametrize(
  'count, clients, said',
  [
    # The first is its own.
    (2, 1, 'process 0 of 2: still waiting: process 1 missing'),
    (4, 1, 'processes 1 to 3 missing; start with --coordinator=localhost:'),
    (4, 2, 'only 1 of processes 1 to 3 came'),
    (4, 4, 'not all of the others have come'),
  ],
)
def test_process_0_counts_who_has_come(count, clients, said):
  with listening(clients) as port:
    assert said in roll_call.missing_line(0, count, f'localhost:{port}')


def test_the_others_look_for_process_0():
  with listening(0) as port:
    line = roll_call.missing_line(2, 4, f'localhost:{port}')
  assert (
    line
    == 'process 2 of 4: still waiting: process 0 is there, others '
    + ('are missing')
  )
  line = roll_call.missing_line(2, 4, f'localhost:{port}')
  assert line.endswith(f'process 0 does not answer at localhost:{port}')


def test_who_is_missing_is_said_after_thirty_seconds_and_when_it_changes(
  monkeypatch, capsys
):
  lines = iter(['a', 'a', 'b'])
  monkeypatch.setattr(roll_call, '_who_is_missing', lambda: next(lines))
  waits = []

  class Done:
    def wait(self, seconds):
      waits.append(seconds)
      return len(waits) > 3

    def is_set(self):
      return False

  roll_call._report(Done())
  assert waits == [30.0] * 4
  printed = capsys.readouterr().err.splitlines()
  assert printed == ['warning: a', 'warning: b']


def test_collectives_wait_for_minutes_unless_the_user_says_otherwise():
  """XLA's own 30 seconds end a job in which one host is slow."""
  one, two = processes._PATIENCE_FLAGS
  assert processes.with_patience('') == f'--{one}=1200 --{two}=1200'
  assert processes.with_patience(f'--{one}=7 --{two}=8') == f'--{one}=7 ' + (
    f'--{two}=8'
  )


def test_who_joins_a_job_waits_for_slow_hosts(monkeypatch):
  asked = []
  monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=')
  monkeypatch.setattr(jax.config, 'update', lambda *pair: asked.append(pair))
  monkeypatch.setattr(
    jax.distributed,
    'initialize',
    lambda *place, **how: asked.append(os.environ['XLA_FLAGS']),
  )
  processes.join('localhost:1', 2, 0)
  wanted = processes.with_patience('--xla_dump_to=')
  assert asked[-1] == wanted
  assert '=1200' in wanted


def test_flags_that_this_version_lacks_are_left_out(monkeypatch):
  """XLA would end the process."""
  one, _ = processes._PATIENCE_FLAGS
  monkeypatch.setattr(processes, '_PATIENCE_FLAGS', (one, 'xla_no_such_flag'))
  assert processes.with_patience('') == f'--{one}=1200'
