"""Read thousands of damaged files: no raw exception, no hang, nothing started.

  python -m benchmarks.fuzz --count 3000 --seed 0

One process, one case at a time, seeds from `--seed` on; `--only TEXT` keeps the
targets with this in their name. Prints a line for every kind of file and every
failure; exits with 1 if there is one. See `tests/support/fuzz.py` for what
counts as a failure, and docs/testing.md for the last figures.
"""

import argparse
import collections
import pathlib
import tempfile
import time

from tests.support import fuzz, fuzz_files


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--count', type=int, default=3000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--only', default='')
  options = parser.parse_args()
  cases, readable = collections.Counter(), collections.Counter()
  spent = collections.Counter()
  failures = []
  began = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    (root / 'whole').mkdir()
    fuzz_files.make_originals(root / 'whole')
    runner = fuzz.Cases(root / 'whole', root)
    for seed in range(options.seed, options.seed + options.count):
      target = str(fuzz.TARGETS[seed % len(fuzz.TARGETS)])
      if options.only not in target:
        continue
      cases[target] += 1
      start = time.perf_counter()
      try:
        readable[target] += runner.run(seed)
      except (fuzz.FuzzError, fuzz.Hang) as error:
        failures.append(error)
        print(f'FAILED {error}'[:600], flush=True)
      spent[target] += time.perf_counter() - start
  seconds = time.perf_counter() - began
  for target, count in cases.items():
    each = f'{count:5} cases, {readable[target]:4} read, {spent[target]:5.0f} s'
    print(f'{each}  {target}')
  print(
    f'{cases.total()} cases of {len(cases)} kinds in {seconds:.0f} s: '
    f'{readable.total()} read, '
    f'{cases.total() - readable.total() - len(failures)} refused in one line, '
    f'{len(failures)} failures'
  )
  return bool(failures)


if __name__ == '__main__':
  raise SystemExit(main())
