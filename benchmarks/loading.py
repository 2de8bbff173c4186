"""Seconds and memory to load DeiT-B from safetensors, in fresh processes.

  python benchmarks/loading.py [--variant=NAME] [--rounds=5]

Writes random weights once, then loads them in a new process per round, with the
file in the page cache. Bounds: loading adds less than 2.2 times the file to the
peak of resident memory, and the median is under 3 seconds. Exits 1 if a bound
is missed. Writes docs/benchmarks/loading.json.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import common

MEMORY_BOUND = 2.2
SECONDS_BOUND = 3.0
OUTPUT = common.RESULTS / 'loading.json'


def resident_bytes() -> int:
  """Resident memory of this process, mapped files included."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith('VmRSS'):
      return int(line.split()[1]) * 1024
  raise RuntimeError('no VmRSS; this benchmark needs Linux')


class Peak:
  """The largest resident memory while a block runs, sampled."""

  def __enter__(self) -> 'Peak':
    self.bytes = resident_bytes()
    self._done = threading.Event()
    self._thread = threading.Thread(target=self._sample)
    self._thread.start()
    return self

  def _sample(self) -> None:
    while not self._done.wait(0.002):
      self.bytes = max(self.bytes, resident_bytes())

  def __exit__(self, *error) -> None:
    self._done.set()
    self._thread.join()
    self.bytes = max(self.bytes, resident_bytes())


def write(variant: str, path: str) -> None:
  from safetensors.numpy import save_file

  from lambda_vit_jax.checkpoints import convert
  from lambda_vit_jax.models.model import create_model

  save_file(convert.encode(create_model(variant).params), path)


def load(variant: str, path: str) -> None:
  import jax

  from lambda_vit_jax.checkpoints.load import load_pretrained

  jax.devices()  # Starting the backend is not part of loading.
  before = resident_bytes()
  with Peak() as peak:
    start = time.perf_counter()
    model = load_pretrained(path, variant=variant)
    jax.block_until_ready(model.params)
    seconds = time.perf_counter() - start
  print(json.dumps({'seconds': seconds, 'before': before, 'peak': peak.bytes}))


def new_process(*arguments: str) -> str:
  command = [sys.executable, __file__, *arguments]
  return subprocess.run(
    command, check=True, stdout=subprocess.PIPE, text=True
  ).stdout


def main() -> int:

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--variant', default='deit_base_patch16_224')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--write', metavar='PATH', help=argparse.SUPPRESS)
  parser.add_argument('--load', metavar='PATH', help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.write:
    write(flags.variant, flags.write)
    return 0
  if flags.load:
    load(flags.variant, flags.load)
    return 0
  with tempfile.TemporaryDirectory() as folder:
    path = f'{folder}/model.safetensors'
    variant = f'--variant={flags.variant}'
    new_process(variant, f'--write={path}')
    size = pathlib.Path(path).stat().st_size
    rows = [
      json.loads(new_process(variant, f'--load={path}'))
      for _ in range(flags.rounds)
    ]
  seconds = [row['seconds'] for row in rows]
  added = max(row['peak'] - row['before'] for row in rows) / size
  whole = max(row['peak'] for row in rows) / size
  median = statistics.median(seconds)
  print(
    f'{flags.variant}: file {size / 1e6:.1f} MB; {median:.2f} s '
    f'(min {min(seconds):.2f}, max {max(seconds):.2f}, {flags.rounds} '
    f'processes); peak {added:.2f} x the file added by loading, '
    f'{whole:.2f} x with the whole process'
  )
  result = {
    **common.provenance(),
    'variant': flags.variant,
    'file_bytes': size,
    'seconds': {'min': min(seconds), 'median': median, 'max': max(seconds)},
    'peak_over_file': {'added_by_loading': added, 'whole_process': whole},
  }
  common.write(OUTPUT, result)
  return int(added > MEMORY_BOUND or median > SECONDS_BOUND)


if __name__ == '__main__':
  sys.exit(main())
