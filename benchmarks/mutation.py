"""Change the package one operator at a time; count the changes tests notice.

  pip install cosmic-ray
  python benchmarks/mutation.py --sample=12
  python benchmarks/mutation.py --files=training/losses.py --sample=0

cosmic-ray makes the changes (`core` operators that keep a program's types:
swapped arithmetic, comparisons and Boolean operators, constants off by one,
removed signs and `not`). Each changed file is tested by the files of tests that
were written for it, in a process forked from one that has imported JAX
already, which takes seconds instead of cosmic-ray's own command per change. No
file is written but the result, docs/benchmarks/mutation.json, entry by entry: a
run that was stopped resumes, and one that is repeated tests only changes that
survived before.

A change that leaves every result as it was (a bound that is never reached, a
faster path's threshold) is equal: benchmarks/mutation_equal.json lists those,
each with the reason.
"""

import argparse
import fcntl
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import common, mutation_named

RESULT = common.RESULTS / 'mutation.json'
EQUAL = pathlib.Path(__file__).with_name('mutation_equal.json')
PACKAGE = 'lambda_vit_jax'

# Which tests were written for a file. A file of the core that is not here is
# tested by the file of the same name: `training/losses.py` by
# `tests/training/test_losses.py`.
TESTS: dict[str, list[str]] = {
  'analysis/blocks.py': [
    'analysis/test_profile.py',
    'selection/test_trials.py',
  ],
  'analysis/moments.py': ['analysis/test_moments.py'],
  'analysis/twofloat.py': ['analysis/test_moments.py'],
  'compression/costs.py': ['compression/test_compress.py'],
  'compression/greedy.py': ['compression/test_compress.py'],
  'compression/nose_path.py': ['compression/test_compress.py'],
  'compression/options.py': ['compression/test_compress.py'],
  'compression/repairs.py': [
    'compression/test_parts.py',
    'compression/test_compress.py',
  ],
  'compression/schema.py': ['compression/test_record.py'],
  'compression/scores.py': [
    'compression/test_parts.py',
    'compression/test_compress.py',
  ],
  'compression/search.py': ['compression/test_compress.py'],
  'compression/steps.py': ['compression/test_compress.py'],
  'compression/streams.py': [
    'compression/test_parts.py',
    'compression/test_compress.py',
  ],
  'data/augment.py': [
    'data/test_transforms.py',
    'data/test_decode.py',
    'data/test_pipeline.py',
  ],
  'data/chunks.py': ['data/test_pipeline.py'],
  'data/readers.py': ['data/test_pipeline.py', 'data/test_sources.py'],
  'data/segment_augment.py': [
    'data/test_segment_augment.py',
    'data/test_masks.py',
  ],
  'models/architecture.py': ['models/test_variants.py'],
  'models/attention_pool.py': ['checkpoints/test_golden_parity.py'],
  'models/families.py': ['models/test_variants.py'],
  'models/gated_mlp.py': ['checkpoints/test_golden_parity.py'],
  'models/relative_bias.py': [
    'models/test_relative_positions.py',
    'checkpoints/test_golden_parity.py',
  ],
  'models/rotary.py': [
    'models/test_relative_positions.py',
    'checkpoints/test_golden_parity.py',
  ],
  'models/adapt.py': ['models/test_adapt.py', 'checkpoints/test_load.py'],
  'models/attention.py': [
    'models/test_attention.py',
    'models/test_model.py',
    'models/test_compiled.py',
  ],
  'models/block.py': [
    'models/test_model.py',
    'models/test_edits.py',
    'models/test_token_merging.py',
  ],
  'models/build.py': ['models/test_model.py', 'end_to_end/test_api.py'],
  'models/edits.py': ['models/test_edits.py', 'models/test_narrow.py'],
  'models/layers.py': ['models/test_model.py', 'models/test_compiled.py'],
  'models/macs.py': [
    'models/test_shapes.py',
    'models/test_token_merging.py',
    'models/test_model.py',
  ],
  'models/linear_attention.py': [
    'training_free/test_map_inputs.py',
    'training_free/test_linear_maps.py',
  ],
  'models/map_inputs.py': [
    'training_free/test_map_inputs.py',
    'training_free/test_linear_maps.py',
  ],
  'models/merge_schedule.py': ['models/test_token_merging.py'],
  'models/modes.py': ['models/test_model.py', 'models/test_edits.py'],
  'models/resampling.py': [
    'models/test_decoders.py',
    'models/test_model.py',
    'checkpoints/test_load.py',
  ],
  'models/shortcuts.py': [
    'checkpoints/test_golden_parity.py',
    'models/test_model.py',
    'selection/test_nose.py',
  ],
  'models/surgery.py': ['models/test_edits.py', 'models/test_narrow.py'],
  'models/vit.py': [
    'models/test_variants.py',
    'models/test_model.py',
    'models/test_edits.py',
  ],
  'selection/affine_score.py': ['selection/test_criteria.py'],
  'selection/criteria.py': [
    'selection/test_criteria.py',
    'selection/test_nose.py',
  ],
  'selection/nose.py': [
    'selection/test_nose.py',
    'selection/test_search_options.py',
  ],
  'selection/options.py': [
    'selection/test_nose.py',
    'selection/test_search_options.py',
  ],
  'selection/short_dilution.py': ['selection/test_probe.py'],
  'selection/trial_readout.py': [
    'selection/test_output_error.py',
    'selection/test_trials.py',
    'selection/test_nose.py',
  ],
  'training/dilution.py': [
    'training/test_dilution.py',
    'training_free/test_dilute.py',
  ],
  'training/blend.py': ['training_free/test_dilute.py'],
  'training/job.py': ['training/test_loop.py'],
  'training/metrics.py': ['training/test_loop.py', 'training/test_step.py'],
  'training/loop.py': ['training/test_loop.py', 'training/test_in_memory.py'],
  'training/persistence.py': ['training/test_persistence.py'],
  'training/step.py': ['training/test_step.py', 'training/test_loop.py'],
  'training_free/cross_validation.py': [
    'training_free/test_linear_maps.py',
    'training_free/test_mlp_refit.py',
  ],
  'training_free/input_choice.py': ['training_free/test_input_choice.py'],
  'training_free/map_design.py': ['training_free/test_linear_maps.py'],
  'training_free/map_fitter.py': ['training_free/test_linear_maps.py'],
  'training_free/paired.py': [
    'training_free/test_mlp_refit.py',
    'training_free/test_norm_recentring.py',
  ],
  'training_free/stand_in.py': ['training_free/test_dilute.py'],
  'training_free/stream_pair.py': ['training_free/test_linear_maps.py'],
  'training_free/token_mixing.py': ['training_free/test_map_inputs.py'],
}
ROOMS = (
  'training', 'selection', 'analysis', 'training_free', 'compression',
  'models', 'data',
)  # fmt: skip
# Seconds after which a change counts as noticed, also beside other work.
_TIMEOUT = 1800
# Words, shapes and files of a user, and estimates of memory: not the method.
LEFT_OUT = (
  '__init__', 'check', 'checks', 'images', 'memory', 'record', 'trackers',
  'tracing',
)  # fmt: skip

_SWAPS = {
  'Binary': [
    ('Add', 'Sub'), ('Sub', 'Add'), ('Mul', 'Div'), ('Div', 'Mul'),
    ('FloorDiv', 'Mul'), ('Mod', 'FloorDiv'), ('Pow', 'Mul'),
  ],
  'Comparison': [
    ('Eq', 'NotEq'), ('NotEq', 'Eq'), ('Lt', 'LtE'), ('LtE', 'Lt'),
    ('Gt', 'GtE'), ('GtE', 'Gt'), ('Lt', 'Gt'), ('Gt', 'Lt'), ('Is', 'IsNot'),
    ('IsNot', 'Is'),
  ],
}  # fmt: skip
OPERATORS = [
  f'core/Replace{kind}Operator_{old}_{new}'
  for kind, pairs in _SWAPS.items()
  for old, new in pairs
] + [
  'core/AddNot',
  'core/NumberReplacer',
  'core/ReplaceAndWithOr',
  'core/ReplaceFalseWithTrue',
  'core/ReplaceOrWithAnd',
  'core/ReplaceTrueWithFalse',
  'core/ReplaceUnaryOperator_Delete_Not',
  'core/ReplaceUnaryOperator_Delete_USub',
]


# Imports, whether a dataclass is frozen, which guards against slips, and the star
# of a signature, which is taken for a product.
_NO_BEHAVIOUR = ('import ', 'from ', '@dataclasses.dataclass(', '*,')


def changes(source: str) -> Iterator[tuple[str, str, str]]:
  """Every change of a file: old line, new line, new source."""
  from cosmic_ray import mutating, plugins

  seen = set()
  for name in OPERATORS:
    operator = plugins.get_operator(name)()
    for occurrence in range(10_000):
      changed = mutating.mutate_code(source, operator, occurrence)
      if changed is None:
        break
      old, new = _changed_lines(source, changed)
      if changed not in seen and not old.startswith(_NO_BEHAVIOUR):
        seen.add(changed)
        yield old, new, changed


def _changed_lines(source: str, changed: str) -> tuple[str, str]:
  """The first line that differs, before and after."""
  for old, new in zip(source.split('\n'), changed.split('\n'), strict=False):
    if old != new:
      return old.strip(), new.strip()
  raise ValueError('nothing changed')


class _Changed(importlib.machinery.SourceFileLoader):
  """Loads one file of the package from a text instead of its own."""

  text = ''

  def get_code(self, fullname: str):
    return compile(self.text, self.path, 'exec', dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
  def __init__(self, name: str, path: str, text: str):
    self.name, self.path, self.text = name, path, text

  def find_spec(self, name, path=None, target=None):
    if name != self.name:
      return None
    loader = _Changed(name, self.path)
    loader.text = self.text
    return importlib.util.spec_from_file_location(
      name, self.path, loader=loader
    )


def run_tests(file: str, text: str, tests: list[str], timeout: float) -> str:
  """`killed`, `timeout` or `survived`, from a forked process.

  Args:
    file: changed file, relative to the package.
    text: its changed source.
    tests: files of tests, relative to tests/.
    timeout: seconds after which the change counts as noticed.
  """
  read, write = os.pipe()
  child = os.fork()
  if not child:
    os.setsid()
    _be_tested(file, text, tests)
  os.close(write)
  # The child holds the pipe's other end until it exits.
  ready, _, _ = select.select([read], [], [], timeout)
  os.close(read)
  if not ready:
    os.killpg(child, signal.SIGKILL)
  _, status = os.waitpid(child, 0)
  if not ready:
    return 'timeout'
  return 'survived' if os.waitstatus_to_exitcode(status) == 0 else 'killed'


def _be_tested(file: str, text: str, tests: list[str]) -> None:
  import pytest

  path = common.ROOT / PACKAGE / file
  module = f'{PACKAGE}.{file.removesuffix(".py").replace("/", ".")}'
  sys.meta_path.insert(0, _Finder(module, str(path), text))
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.dup2(null, 2)
  code = 1
  try:
    code = pytest.main(
      ['-x', '-q', '-n', '0', '--assert=plain', '-p', 'no:cacheprovider']
      # Most tests of a search are slow.
      + (['-m', ''] if file.startswith('compression/') else [])
      + [str(common.ROOT / 'tests' / test) for test in tests]
    )
  finally:
    os._exit(int(code))


def tests_of(file: str) -> list[str]:
  """The files of tests that were written for a file of the package."""
  room, name = file.split('/')
  tests = TESTS.get(file, [f'{room}/test_{name}'])
  return [test for test in tests if (common.ROOT / 'tests' / test).exists()]


def core_files() -> list[str]:
  """Files of the method that have tests of their own."""
  return [
    f'{room}/{path.name}'
    for room in ROOMS
    for path in sorted((common.ROOT / PACKAGE / room).glob('*.py'))
    if path.stem not in LEFT_OUT and tests_of(f'{room}/{path.name}')
  ]


def record(name: str, result: Any) -> None:
  """Replaces an entry of the result; several runs may share the file."""
  with pathlib.Path(__file__).open() as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    common.write_entry(RESULT, name, result)


def key(file: str, old: str, new: str, number: int) -> str:
  """Names a change by its text, so that it outlives other lines' edits."""
  text = '\n'.join([file, old, new, str(number)])
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure(file: str, sample: int, seed: int, again: bool) -> dict:
  """Tests a file's changes; returns the entries of the result."""
  source = (common.ROOT / PACKAGE / file).read_text()
  equal = {
    (entry['file'], entry['old'], entry['new'])
    for entry in json.loads(EQUAL.read_text())
  }
  known = common.read(RESULT).get(file, {}).get('changes', {})
  every, counts = [], {}
  for old, new, text in changes(source):
    number = counts[old, new] = counts.get((old, new), -1) + 1
    every.append((key(file, old, new, number), old, new, text))
  chosen = sorted(every)
  random.Random(f'{seed} {file}').shuffle(chosen)
  chosen = chosen[: sample or None]
  entries = {}
  for name, old, new, text in chosen:
    entry = known.get(name, {})
    outcome = entry.get('outcome')
    if (file, old, new) in equal:
      outcome = 'equal'
    elif outcome in (None, 'equal') or (again and outcome == 'survived'):
      start = time.perf_counter()
      outcome = run_tests(file, text, tests_of(file), timeout=_TIMEOUT)
      print(
        f'{outcome:8} {time.perf_counter() - start:5.1f} s  {file}\n'
        f'    - {old}\n    + {new}',
        flush=True,
      )
    entries[name] = {'outcome': outcome, 'old': old, 'new': new}
    result = {'changes': dict(entries), 'of': len(every)}
    record(file, result)
  return entries


def measure_named(again: bool) -> None:
  """Tests the wrong programs of `mutation_named`."""
  known = common.read(RESULT).get('named', {})
  for change in mutation_named.CHANGES:
    name = f'{change.file}: {change.what}'
    if known.get(name) in ('killed', 'timeout'):
      continue
    if name in known and not again:
      continue
    source = (common.ROOT / PACKAGE / change.file).read_text()
    if source.count(change.old) != 1:
      sys.exit(f'{change.file}: {change.old!r} does not occur once')
    text = source.replace(change.old, change.new)
    known[name] = run_tests(change.file, text, tests_of(change.file), _TIMEOUT)
    print(f'{known[name]:8} {name}', flush=True)
    record('named', known)


def table() -> str:
  """Killed, survived and equal per file, as Markdown."""
  lines = [
    '| file | changes | killed | survived | equal |',
    '|---|---|---|---|---|',
  ]
  totals = [0, 0, 0, 0]
  for file, result in sorted(common.read(RESULT).items()):
    if file in ('named', 'provenance'):
      continue
    outcomes = [entry['outcome'] for entry in result['changes'].values()]
    row = [
      len(outcomes),
      sum(outcome in ('killed', 'timeout') for outcome in outcomes),
      outcomes.count('survived'),
      outcomes.count('equal'),
    ]
    totals = [total + value for total, value in zip(totals, row, strict=True)]
    lines.append(f'| `{file}` | ' + ' | '.join(map(str, row)) + ' |')
  lines.append('| all | ' + ' | '.join(map(str, totals)) + ' |')
  named = list(common.read(RESULT).get('named', {}).values())
  lines.append(
    f'\nWrong programs by name: {named.count("survived")} of {len(named)} '
    'survived.'
  )
  return '\n'.join(lines)


def main() -> None:
  """Tests the files asked for, then prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--files', nargs='*', help='default: the core')
  parser.add_argument('--sample', type=int, default=12, help='0: every change')
  parser.add_argument(
    '--part', default='0/1', help='of the files: 0/2 and 1/2 side by side'
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--named',
    action='store_true',
    help=('only the changes of mutation_named.py'),
  )
  parser.add_argument('--again', action='store_true', help='the survivors')
  parser.add_argument(
    '--unchecked',
    action='store_true',
    help='the tests are known to pass: do not run them without a change first',
  )
  parser.add_argument('--table', action='store_true', help='print, run nothing')
  flags = parser.parse_args()
  if not flags.table:
    os.environ['JAX_PLATFORMS'] = 'cpu'
    # What a child need not import again. No backend starts before a fork.
    import cosmic_ray.plugins  # noqa: F401
    import flax.linen  # noqa: F401
    import hypothesis  # noqa: F401
    import optax  # noqa: F401
    import pytest  # noqa: F401

    if flags.named:
      measure_named(flags.again)
    files = flags.files or ([] if flags.named else core_files())
    part, parts = map(int, flags.part.split('/'))
    for file in files[part::parts]:
      # The tests must pass before a change can be said to fail them.
      source = (common.ROOT / PACKAGE / file).read_text()
      sound = (
        flags.unchecked
        or run_tests(file, source, tests_of(file), _TIMEOUT) == 'survived'
      )
      if not sound:
        sys.exit(f'{file}: its tests fail without a change')
      measure(file, flags.sample, flags.seed, flags.again)
    record('provenance', common.provenance())
  print(table())


if __name__ == '__main__':
  main()
