"""Run a program as two processes of one `jax.distributed` job."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

from tests.support import xla_flags

_ROOT = pathlib.Path(__file__).parents[2]

# Gloo prints lines to stdout, at times after the program's: `[Gloo] Rank 1 is
# connected to 1 peer ranks. […] : 1`. They go to stderr, and what Python prints
# has the pipe for itself.
_OWN_STDOUT = """
import os, sys
sys.stdout = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)
"""


def run_processes(program, devices=2):
  """Returns the last word that each process prints.

  Args:
    program: Python source; `sys.argv` has the coordinator and the index.
    devices: virtual CPU devices per process.
  """
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
    'XLA_FLAGS': xla_flags.flags(devices),
    'PYTHONPATH': str(_ROOT),
  }
  with contextlib.ExitStack() as stack:
    processes = [
      stack.enter_context(
        subprocess.Popen(
          [
            sys.executable,
            '-c',
            _OWN_STDOUT + program,
            address,
            str(index),
          ],
          env=environment,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )
      for index in range(2)
    ]
    for process in processes:
      stack.callback(process.kill)
    words = []
    for process in processes:
      out, error = process.communicate(timeout=300)
      assert process.returncode == 0, error
      words.append(out.split()[-1])
    return words
