#!/usr/bin/env python3
"""Start one `lambda-vit` job as several processes on this machine.

  scripts/launch_local.py --processes=2 --devices=2 \
    run --config=configs/digits.py:runlocal --workdir=runs/two

Use it to try out a multi-process job, or on hosts where each GPU needs its own
process (`--gpus`). Pods do not need it: see docs/pods.md. Signals are forwarded
to every process; the exit code is the largest of theirs.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType


def free_address() -> str:
  """A local address with a free port."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return f'localhost:{probe.getsockname()[1]}'


def environment(index: int, devices: int, gpus: bool) -> dict[str, str]:
  """Environment variables of one process.

  Args:
    index: of the process.
    devices: number of virtual CPU devices; 0 for the machine's own devices.
    gpus: whether the process sees only the GPU of its index.
  """
  found = dict(os.environ)
  if devices:
    found['JAX_PLATFORMS'] = 'cpu'
    # Of repeated flags, XLA takes the last.
    number = f'--xla_force_host_platform_device_count={devices}'
    found['XLA_FLAGS'] = f'{found.get("XLA_FLAGS", "")} {number}'.strip()
  if gpus:
    found['CUDA_VISIBLE_DEVICES'] = str(index)
  return found


def start(
  arguments: Sequence[str], processes: int, devices: int = 0, gpus: bool = False
) -> list[subprocess.Popen[bytes]]:
  """Starts the processes of one job.

  Args:
    arguments: of `lambda-vit`, without those that identify a process.
    processes: number of processes.
    devices: see `environment`.
    gpus: see `environment`.
  """
  address = free_address()
  return [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'lambda_vit_jax',
        *arguments,
        f'--coordinator={address}',
        f'--num_processes={processes}',
        f'--process_id={index}',
      ],
      env=environment(index, devices, gpus),
    )
    for index in range(processes)
  ]


def main(argv: Sequence[str]) -> int:
  """Runs a job and returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument(
    '--devices', type=int, default=0, help='virtual CPU devices per process'
  )
  parser.add_argument('--gpus', action='store_true', help='one GPU per process')
  options, rest = parser.parse_known_args(argv)
  job = start(rest, options.processes, options.devices, options.gpus)

  def forward(signum: int, frame: FrameType | None) -> None:
    del frame
    for process in job:
      if process.poll() is None:
        process.send_signal(signum)

  for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, forward)
  return max(abs(process.wait()) for process in job)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
