"""Signals, kills, two jobs at once, and full disks, at random moments.

  python benchmarks/interruptions.py signals kills pairs disks limits slow

Every command of `lambda-vit` is a process forked from one that has imported the
package (so that moments fall on its work, not on imports), with a small network
on the digits, in a workdir in which the stages before are finished. What was
interrupted is run again until it is done, and has to end with the bits of a run
that nothing disturbed. `disks` mounts a tmpfs of 64 MiB and fills it (root);
`limits` needs no rights: RLIMIT_FSIZE ends every file of the command at some
size, with EFBIG, as a quota does. `slow` is a job of two processes, one of which
reads its data for 90 seconds longer. Writes docs/benchmarks/interruptions.json,
stage by stage: a part that was stopped resumes at the stage it had come to, and a
complete one is done anew. Exits 1 if anything was lost.
"""

import argparse
import contextlib
import dataclasses
import errno
import json
import multiprocessing
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import common

OUTPUT = common.RESULTS / 'interruptions.json'
STAGES = (
  'pretrain',
  'analyze',
  'select',
  'linearize',
  'compress',
  'dilute',
  'export',
  'baseline',
  'evaluate',
  'benchmark',
  'report',
)
TRAINED = ('pretrain', 'dilute', 'baseline')
WORDS = (
  f'--config={common.ROOT}/configs/digits.py',
  '--config.init=',
  '--config.model.variant=vit_nano_patch2_8',
  '--config.batch_size=32',
  '--config.pretrain.steps=12',
  '--config.pretrain.warmup_steps=1',
  '--config.select.num_layers=2',
  '--config.linearize.polish_steps=6',
  '--config.compress.num_images=128',
  '--config.compress.target_speedup=1.4',
  '--config.dilute.warmup_steps=1',
  '--config.dilute.dilution_steps=6',
  '--config.dilute.settle_steps=6',
  '--config.checkpoint_every=3',
  '--config.log_every=1',
  '--config.benchmark.rounds=2',
)
# What each stage writes.
RESULTS = {
  'pretrain': 'checkpoints/pretrain',
  'analyze': 'analysis.json',
  'select': 'selection.json',
  'linearize': 'linear',
  'compress': 'compressed',
  'dilute': 'checkpoints/dilute',
  'export': 'export',
  'baseline': 'checkpoints/baseline',
  'evaluate': 'evaluation.json',
  'benchmark': 'benchmark.json',
  'report': 'report.html',
}
_SLOW = """
import ctypes, sys
from lambda_vit_jax import main
from lambda_vit_jax.cli.workdir import Run
batches = Run.train_batches
def slow(self, *arguments):
  for number, batch in enumerate(batches(self, *arguments)):
    if number == 2 and not self.leader:
      # With the lock of the interpreter held: no thread of Python runs either.
      ctypes.PyDLL(None).sleep(int(float(sys.argv[1])))
    yield batch
Run.train_batches = slow
sys.exit(main.main(sys.argv[2:]))
"""

# Free bytes when a stage starts on a disk that is almost full.
FREE = (0, 16 << 10, 128 << 10)
# The longest file; what the command prints goes to one as well.
LONGEST = (4 << 10, 32 << 10)


# Imports the package, and forks.
_FORKS = multiprocessing.get_context('forkserver')
_FORKS.set_forkserver_preload(
  ['lambda_vit_jax.cli.stages.registry', 'lambda_vit_jax.main']
)


class Command:
  """A running command."""

  def __init__(self, argv: list[str], longest: int | None = None):
    """Starts it; what it prints on stderr goes to a file.

    Args:
      argv: the words after `lambda-vit`.
      longest: bytes of its longest file, None for no limit.
    """
    self._said = pathlib.Path(tempfile.mkstemp()[1])
    begun = _FORKS.Event()
    self._process = _FORKS.Process(
      target=_work, args=(argv, str(self._said), longest, begun)
    )
    self._process.start()
    begun.wait()

  def ended(self, seconds: float) -> bool:
    """Waits for so long at most; returns whether it has ended."""
    self._process.join(seconds)
    return self._process.exitcode is not None

  def send_signal(self, number: signal.Signals) -> None:
    """Sends a signal."""
    assert self._process.pid is not None
    os.kill(self._process.pid, number)

  def finish(self) -> tuple[int, str]:
    """Waits for its end; returns the exit code and what it printed."""
    self._process.join()
    said = self._said.read_text()
    self._said.unlink()
    assert self._process.exitcode is not None
    return self._process.exitcode, said


def _work(argv: list[str], said: str, longest: int | None, begun: Any) -> None:
  """The command, in the forked process."""
  # As at a shell's prompt; shells start what is in the background without it.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  os.dup2(os.open(said, os.O_WRONLY), 2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  from lambda_vit_jax import main

  sys.argv = ['lambda-vit', *argv]
  if longest is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))
  begun.set()
  main.run()


@dataclasses.dataclass
class Bench:
  """What all trials share.

  Attributes:
    folder: for everything; emptied at the end.
    seed: of the moments.
    seconds: how long each stage takes when nothing disturbs it.
    expected: the results of each stage, see `result_of`.
  """

  folder: pathlib.Path
  seed: int
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  expected: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def reference(self) -> pathlib.Path:
    """The workdir of the run that nothing disturbed."""
    return self.folder / 'reference'

  def start(
    self, stage: str, workdir: pathlib.Path, longest: int | None = None
  ) -> Command:
    """Starts a command; for `longest` see `Command`."""
    return Command([stage, *WORDS, f'--workdir={workdir}'], longest)

  def prepare(self, stage: str, workdir: pathlib.Path) -> None:
    """Makes a workdir in which the stages before `stage` are finished."""
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir(parents=True)
    names = [RESULTS[name] for name in STAGES[: STAGES.index(stage)]]
    if 'compressed' in names:
      names.append('compression.json')
    for name in ('config.json', 'metrics.jsonl', *names):
      source = self.reference / name
      if source.is_dir():
        shutil.copytree(source, workdir / name)
      elif source.exists():
        shutil.copy(source, workdir / name)

  def check(self, stage: str, workdir: pathlib.Path) -> list[str]:
    """Compares a finished stage; returns what is wrong."""
    found = result_of(stage, workdir)
    if found != self.expected[stage]:
      return [f'{stage}: other bits: {found} for {self.expected[stage]}']
    left = [
      path.name
      for path in workdir.iterdir()
      if path.name == 'lock.json' or '.part' in path.name
    ]
    return [f'{stage}: left behind: {left}'] if left else []


def result_of(stage: str, workdir: pathlib.Path) -> Any:
  """What a stage has computed, without times."""
  from lambda_vit_jax.checkpoints import load
  from lambda_vit_jax.core import digests
  from lambda_vit_jax.training.metrics import read_metrics

  path = workdir / RESULTS[stage]
  if stage in TRAINED:
    rows = read_metrics(workdir / 'metrics.jsonl')
    losses = [(r['step'], r['loss']) for r in rows if r['stage'] == stage]
    trained = load.load_stage(workdir, stage, finished=True).params
    return digests.fingerprint(trained), losses
  if stage == 'export':
    files = ('model.safetensors', 'model.stablehlo')
    return [digests.of_file(common_path(path / name)) for name in files]
  if stage in ('linearize', 'compress'):
    fitted = digests.fingerprint(load.load_pretrained(str(path)).params)
    return fitted, _search(workdir) if stage == 'compress' else None
  if stage in ('benchmark', 'report'):
    return path.exists()
  found = json.loads(path.read_text())
  found.pop('sha256', None)
  for row in found.get('rounds', ()):
    row.pop('seconds', None)
  return found


def _search(workdir: pathlib.Path) -> Any:
  """The path of `compress`, without what an interrupted one spends twice."""
  found = json.loads((workdir / 'compression.json').read_text())
  for step in found['steps']:
    del step['seconds']
  return [found[name] for name in ('start', 'steps', 'pending')]


def common_path(path: pathlib.Path) -> Any:
  """As the package opens files."""
  from etils import epath

  return epath.Path(path)


def make_reference(bench: Bench, stages: Sequence[str], timed: bool) -> None:
  """Runs the stages; where moments are drawn, twice: the first fills the cache."""
  first = [bench.folder / 'first'] if timed else []
  for workdir in (*first, bench.reference):
    for stage in stages:
      began = time.monotonic()
      code, said = bench.start(stage, workdir).finish()
      if code:
        raise SystemExit(f'{stage}: {said}')
      bench.seconds[stage] = time.monotonic() - began
  bench.expected = {name: result_of(name, bench.reference) for name in stages}


def lines_of(said: str) -> list[str]:
  """The lines that report an error."""
  return [line for line in said.splitlines() if line.startswith('lambda-vit:')]


def problems_of(stage: str, said: str) -> list[str]:
  """Tracebacks, and anything but one line of error."""
  found = [f'{stage}: a traceback: {said}'] if 'Traceback' in said else []
  if 'Exception ignored' in said:
    found.append(f'{stage}: {said}')
  if len(lines_of(said)) > 1:
    found.append(f'{stage}: several lines: {lines_of(said)}')
  return found


def interrupt(
  bench: Bench, stage: str, count: int, signals: tuple[signal.Signals, ...]
) -> dict[str, Any]:
  """Sends signals at random moments to a stage.

  It is started again in the same workdir each time, until it ends before its
  signal; then it is compared, and begins anew.
  """
  rng = random.Random(f'{bench.seed} {stage} {signals}')
  workdir = bench.folder / 'interrupted'
  bench.prepare(stage, workdir)
  problems: list[str] = []
  waits: list[float] = []
  codes: dict[str, int] = {}
  compared = 1
  while len(waits) < count:
    command = bench.start(stage, workdir)
    number = rng.choice(signals)
    moment = rng.uniform(0.2, 1.05 * bench.seconds[stage])
    if command.ended(moment):
      problems += finish(bench, stage, workdir, command)
      compared += 1
      bench.prepare(stage, workdir)
      continue
    began = time.monotonic()
    command.send_signal(number)
    code, said = command.finish()
    waits.append(time.monotonic() - began)
    # Before the program's handlers are there it ends as by default.
    if code not in (-number, 128 + number):
      problems.append(f'{stage}: {number.name} at {moment:.2f} s: {said}')
    name = f'{number.name}: {code}'
    codes[name] = codes.get(name, 0) + 1
    problems += problems_of(stage, said)
  problems += finish(bench, stage, workdir)
  return {
    'sent': len(waits),
    'exit_codes': codes,
    'seconds_to_the_end': common.spread(waits),
    'runs_compared': compared,
    'problems': problems,
  }


def finish(
  bench: Bench,
  stage: str,
  workdir: pathlib.Path,
  command: Command | None = None,
) -> list[str]:
  """Runs a stage to its end and compares it; returns what is wrong."""
  code, said = (command or bench.start(stage, workdir)).finish()
  if code:
    return [f'{stage}: exit code {code}: {said}']
  return problems_of(stage, said) + bench.check(stage, workdir)


def run_pairs(bench: Bench, stage: str, count: int) -> dict[str, Any]:
  """Starts two jobs at once in one workdir: one is refused, one is right."""
  problems: list[str] = []
  for _ in range(count):
    workdir = bench.folder / 'pair'
    bench.prepare(stage, workdir)
    jobs = [bench.start(stage, workdir) for _ in range(2)]
    codes, said = zip(*(job.finish() for job in jobs), strict=True)
    lines = [line for text in said for line in lines_of(text)]
    refused = len(lines) == 1 and 'another job' in lines[0]
    if sorted(codes) != [0, 1] or not refused:
      problems.append(f'{stage}: exit codes {codes}: {said}')
    problems += bench.check(stage, workdir)
  return {'pairs': count, 'problems': problems}


@contextlib.contextmanager
def small_disk(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A file system of 64 MiB, for root only."""
  folder.mkdir(exist_ok=True)
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(folder)]
  subprocess.run(mount, check=True)
  try:
    yield folder
  finally:
    subprocess.run(['umount', str(folder)], check=True)


def fill_disks(bench: Bench, stage: str) -> dict[str, Any]:
  """Starts a stage on a disk that is almost full, then makes room."""
  problems: list[str] = []
  failed = []
  for free in FREE:
    with small_disk(bench.folder / 'disk') as disk:
      bench.prepare(stage, disk / 'run')
      filler = disk / 'filler'
      room = shutil.disk_usage(disk).free - free
      with filler.open('wb') as file:
        os.posix_fallocate(file.fileno(), 0, room)
      code, said = bench.start(stage, disk / 'run').finish()
      problems += problems_of_full(stage, f'{free} free', code, said)
      if code:
        failed.append(free)
      filler.unlink()
      problems += finish(bench, stage, disk / 'run')
  return {'free_bytes': FREE, 'failed_with': failed, 'problems': problems}


def limit_files(bench: Bench, stage: str) -> dict[str, Any]:
  """Starts a stage whose files may not grow, then lifts the limit."""
  problems: list[str] = []
  failed = []
  workdir = bench.folder / 'limited'
  for longest in LONGEST:
    bench.prepare(stage, workdir)
    code, said = bench.start(stage, workdir, longest).finish()
    problems += problems_of_full(stage, f'files of {longest}', code, said)
    if code:
      failed.append(longest)
    problems += finish(bench, stage, workdir)
  return {'longest_file': LONGEST, 'failed_with': failed, 'problems': problems}


def problems_of_full(stage: str, how: str, code: int, said: str) -> list[str]:
  """What is wrong with the end of a command that had no room."""
  found = problems_of(stage, said)
  line = ' '.join(lines_of(said))
  known = [os.strerror(number) for number in (errno.ENOSPC, errno.EFBIG)]
  if code and (code != 1 or not any(reason in line for reason in known)):
    found.append(f'{stage}, {how}: exit code {code}: {said}')
  return found


def wait_for_slow_host(
  bench: Bench, stage: str, seconds: float
) -> dict[str, Any]:
  """Two processes train; one reads its data for so much longer."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  job = [
    subprocess.Popen(
      [
        *(sys.executable, '-c', _SLOW, str(seconds), stage, *WORDS),
        f'--workdir={bench.folder / "slow"}',
        f'--coordinator={address}',
        '--num_processes=2',
        f'--process_id={index}',
      ],
      cwd=common.ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate()[1] for process in job]
  codes = [process.returncode for process in job]
  problems = [] if codes == [0, 0] else [f'exit codes {codes}: {said}']
  return {'seconds_longer': seconds, 'problems': problems}


def rows_of(
  bench: Bench, options: argparse.Namespace
) -> dict[str, tuple[tuple[str, ...], Callable[[str], dict[str, Any]]]]:
  """Per part its stages, and what disturbs one."""
  both = (signal.SIGTERM, signal.SIGINT)
  # A report may be made beside another job.
  locked = tuple(stage for stage in STAGES if stage != 'report')
  return {
    'signals': (STAGES, lambda s: interrupt(bench, s, options.signals, both)),
    'kills': (
      STAGES,
      lambda s: interrupt(bench, s, options.kills, (signal.SIGKILL,)),
    ),
    'pairs': (locked, lambda s: run_pairs(bench, s, options.pairs)),
    'disks': (STAGES, lambda s: fill_disks(bench, s)),
    'limits': (STAGES, lambda s: limit_files(bench, s)),
    'slow': (
      ('pretrain',),
      lambda s: wait_for_slow_host(bench, s, options.slow),
    ),
  }


def main() -> int:
  """Runs the parts that are asked for."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  names = ('signals', 'kills', 'pairs', 'disks', 'limits', 'slow')
  parser.add_argument('parts', nargs='+', choices=names)
  parser.add_argument('--signals', type=int, default=10, help='for each stage')
  parser.add_argument('--kills', type=int, default=2, help='for each stage')
  parser.add_argument('--pairs', type=int, default=1, help='for each stage')
  parser.add_argument('--slow', type=float, default=90, help='seconds')
  parser.add_argument('--stages', nargs='*', default=STAGES, choices=STAGES)
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  lost = 0
  with tempfile.TemporaryDirectory() as folder:
    os.environ['JAX_PLATFORMS'] = 'cpu'
    os.environ['LAMBDA_VIT_CACHE'] = f'{folder}/cache'
    bench = Bench(pathlib.Path(folder), options.seed)
    last = max(map(STAGES.index, options.stages))
    timed = bool({'signals', 'kills'} & {*options.parts})
    make_reference(bench, STAGES[: last + 1], timed)
    print({name: round(s, 1) for name, s in bench.seconds.items()}, flush=True)
    for part in options.parts:
      stages, disturb = rows_of(bench, options)[part]
      wanted = [stage for stage in stages if stage in options.stages]
      entry = common.read(options.output).get(part, {})
      rows = entry.get('stages', {})
      if rows.keys() >= set(wanted):
        # Everything is there: measured anew.
        rows = {name: row for name, row in rows.items() if name not in wanted}
      for stage in wanted:
        if stage not in rows:
          began = time.monotonic()
          rows[stage] = disturb(stage)
          rows[stage]['seconds'] = round(time.monotonic() - began)
          print(part, stage, json.dumps(rows[stage], indent=2), flush=True)
          common.write_entry(
            options.output, part, {'stages': rows, **common.provenance()}
          )
      lost += sum(len(row['problems']) for row in rows.values())
  return 1 if lost else 0


if __name__ == '__main__':
  sys.exit(main())
