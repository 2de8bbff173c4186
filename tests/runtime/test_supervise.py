"""The parent of a working process: codes, signals, and one last line."""

import signal
import subprocess
import sys

import pytest

from lambda_vit_jax.cli import flags as flags_lib
from lambda_vit_jax.core.errors import UsageError

# What JAX's coordination client writes when the job breaks.
ABORT = (
  'F1121 client.h:80] Terminating process because the JAX distributed service '
  'detected fatal errors. {why}\\n*** Check failure stack trace: ***\\n'
  '    @ 0x7f absl::LogMessage::Flush()\\n'
)


def supervised(work, wait=True):
  program = (
    'import os, signal, sys, time\n'
    'from lambda_vit_jax.runtime import supervise\n'
    f'def work():\n{work}\n'
    'sys.exit(supervise.run(work, 1, 2))\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  if not wait:
    return process
  out, error = process.communicate(timeout=60)
  return process.returncode, out, error


@pytest.mark.parametrize('code', [0, 1, 2, 143])
def test_the_code_of_the_work_is_the_code(code):
  found, out, error = supervised(
    f"  print('done'); print('said', file=sys.stderr); return {code}"
  )
  assert (found, out, error) == (code, 'done\n', 'said\n')


@pytest.mark.parametrize(
  'why, who',
  [
    ('tasks are unhealthy (stopped sending heartbeats):\\n3', 'process 3'),
    ('UNAVAILABLE: Socket closed', 'process 0'),
  ],
)
def test_a_broken_job_is_one_line_instead_of_a_trace(why, who):
  text = ABORT.format(why=why)
  code, _, error = supervised(
    '  supervise.joined()\n'
    f"  os.write(2, b'[Gloo] Rank 0\\nkept\\n{text}'); os.abort()"
  )
  assert code == 1
  kept, line = error.splitlines()
  assert kept == 'kept'
  assert line.startswith(f'lambda-vit: process 1 of 2: {who} of the job has')


def test_a_job_that_never_began_says_so():
  text = ABORT.format(why='DEADLINE_EXCEEDED')
  code, _, error = supervised(f"  os.write(2, b'{text}'); os.abort()")
  assert code == 1
  assert error.count('\n') == 1
  assert 'the 2 processes of the job did not find each other' in error


def test_what_the_work_announced_stands_when_the_job_breaks_after_it():
  text = ABORT.format(why='')
  code, _, error = supervised(
    "  print('lambda-vit: my own error', file=sys.stderr)\n"
    '  supervise.announce(2)\n'
    f"  os.write(2, b'{text}'); os.abort()"
  )
  assert (code, error) == (2, 'lambda-vit: my own error\n')


def test_a_killed_child_is_reported():
  code, _, error = supervised('  os.kill(os.getpid(), signal.SIGKILL)')
  assert code == 1
  assert error.count('\n') == 1
  assert 'ended by SIGKILL' in error


def test_signals_reach_the_work_once():
  process = supervised(
    # Written by the handler of C: one of Python would not run before the read
    # returns, should the signal come just before it.
    '  import select\n'
    '  come, write = os.pipe()\n'
    '  os.set_blocking(write, False)\n'
    '  signal.signal(signal.SIGTERM, lambda *_: None)\n'
    '  signal.set_wakeup_fd(write)\n'
    "  print('ready', flush=True)\n"
    '  os.read(come, 1)\n'
    '  return 42 if select.select([come], [], [], 0.5)[0] else 41',
    wait=False,
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 41


def test_the_work_dies_with_its_parent():
  process = supervised(
    '  print(os.getpid(), flush=True)\n  time.sleep(600)', wait=False
  )
  child = int(process.stdout.readline())
  process.kill()
  process.wait()
  # The child holds the other end of these pipes until it is gone.
  process.communicate(timeout=60)
  assert child != process.pid


@pytest.mark.parametrize(
  'flags, message',
  [
    ((None, 2, 0, False), '--coordinator missing'),
    (('host:1', None, 0, False), '--num_processes missing'),
    (('host:1', 2, None, False), '--process_id missing'),
    (('host:1', 2, 2, False), r'must lie in 0\.\.1'),
    (('host', 2, 0, False), 'give HOST:PORT'),
    (('host:1', 2, 0, True), 'leave out'),
  ],
)
def test_flags_that_make_no_job_are_refused(flags, message):
  with pytest.raises(UsageError, match=message):
    flags_lib.check_flags(*flags)


def test_flags_that_make_a_job():
  assert flags_lib.check_flags('host:1', 2, 1, False)
  assert flags_lib.check_flags(None, None, None, True)
  assert not flags_lib.check_flags(None, None, None, False)


def test_what_the_work_began_ends_when_it_is_aborted():
  """Workers that read data hold the pipe to the parent open."""
  code, _, error = supervised(
    '  import subprocess\n'
    "  subprocess.Popen(['sleep', '600'])\n"
    '  supervise.joined()\n'
    f"  os.write(2, b'{ABORT.format(why='')}'); os.abort()"
  )
  assert code == 1
  assert error.count('\n') == 1
