"""Two real processes form one job, over loopback, with the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lambda_vit_jax.checkpoints import load, orbax_store
from lambda_vit_jax.models.map_inputs import LINEAR_INPUTS
from lambda_vit_jax.training.metrics import read_metrics
from scripts import launch_local
from tests.support.stage_runs import ROOT, arguments

# Sends a signal to a whole process (the parent and its working child) or to
# the one that a person would send it to, at a chosen line of metrics.
_WITH_SIGNAL = """
import os, signal, sys
from lambda_vit_jax import main
from lambda_vit_jax.training import metrics
name, index, stage, step = sys.argv[1].split(',')
write = metrics.MetricsWriter.write
def write_and_signal(self, at, now, **values):
  write(self, at, now, **values)
  if (at, now) == (stage, int(step)) and f'--process_id={index}' in sys.argv:
    os.kill(os.getppid(), getattr(signal, name))
    if name == 'SIGKILL':
      os.kill(os.getpid(), signal.SIGKILL)
metrics.MetricsWriter.write = write_and_signal
sys.exit(main.main(sys.argv[2:]))
"""

# Of one device each, where nothing is said of the devices: quick to compile.
QUICK = ('--config.eval_every=0', '--config.benchmark.rounds=1')


def start(argv, count=2, devices=1, event=None, own=lambda index: ()):
  """Starts a job; `event` is signal, process, stage and step."""
  address = launch_local.free_address()
  head = ['-m', 'lambda_vit_jax']
  if event is not None:
    head = ['-c', _WITH_SIGNAL, ','.join(map(str, event))]
  return [
    subprocess.Popen(
      [
        sys.executable,
        *head,
        *argv,
        *own(index),
        f'--coordinator={address}',
        f'--num_processes={count}',
        f'--process_id={index}',
      ],
      cwd=ROOT,
      env=launch_local.environment(index, devices, gpus=False),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]


def finish(job, timeout=900):
  """Exit codes and errors of all processes, none of which is left behind."""
  try:
    said = [process.communicate(timeout=timeout)[1] for process in job]
  finally:
    for process in job:
      process.kill()
  return [process.returncode for process in job], said


def errors(text):
  return [line for line in text.splitlines() if line.startswith('lambda-vit:')]


def alone(argv, devices=2):
  """The same in one process with as many devices."""
  done = subprocess.run(
    [sys.executable, '-m', 'lambda_vit_jax', *argv],
    cwd=ROOT,
    env=launch_local.environment(0, devices, gpus=False),
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr
  return done.stderr


def losses(workdir, stage):
  rows = read_metrics(workdir / 'metrics.jsonl')
  found = {row['step']: row['loss'] for row in rows if row['stage'] == stage}
  return [found[step] for step in sorted(found)]


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_one_process_goes_on(tmp_path):
  """Two train, one is killed, the other reports it; then one resumes alone."""
  workdir, other = tmp_path / 'two', tmp_path / 'one'
  argv = arguments('pretrain', workdir, *QUICK)
  # The save at step 4 has waited for the one at step 2, and may itself be cut
  # short.
  job = start(argv, event=('SIGKILL', 1, 'pretrain', 5))
  job[1].wait(timeout=600)
  killed = time.monotonic()
  codes, said = finish(job, timeout=60)
  assert time.monotonic() - killed < 60
  assert codes == [1, -signal.SIGKILL]
  (line,) = errors(said[0])
  assert 'process 0 of 2' in line
  assert 'has ended or cannot be reached' in line
  assert 'Traceback' not in said[0]
  assert 'stack trace' not in said[0]
  assert re.search('continuing at step [24] of 6', alone(argv))
  alone(arguments('pretrain', other, *QUICK))
  # Sums over devices in another order.
  np.testing.assert_allclose(
    losses(workdir, 'pretrain'), losses(other, 'pretrain'), atol=1e-5
  )


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """Everything by one process with four devices."""
  workdir = tmp_path_factory.mktemp('single') / 'run'
  alone(arguments('run', workdir), devices=4)
  return workdir


def assert_same_run(workdir, single):
  for stage in ('pretrain', 'dilute'):
    np.testing.assert_allclose(
      losses(workdir, stage), losses(single, stage), atol=1e-5
    )
  for name in ('selection.json', 'evaluation.json'):
    mine, theirs = (
      json.loads((path / name).read_text()) for path in (workdir, single)
    )
    if name == 'selection.json':
      assert mine['order'] == theirs['order']
      assert mine['num_samples'] == theirs['num_samples']
    else:
      for model in ('dense', 'pruned', 'exported'):
        assert mine[model]['num_images'] == 360
        np.testing.assert_allclose(
          mine[model]['loss'], theirs[model]['loss'], atol=1e-4
        )
  for name in ('analysis.json', 'benchmark.json', 'report.html'):
    assert (workdir / name).exists(), name
  assert load.load_pretrained(workdir / 'export').removed_layers
  assert not [path for path in workdir.iterdir() if path.name[0] == '.']


@pytest.mark.slow
def test_all_stages_after_one_process_began(single, tmp_path):
  """One process is killed in `pretrain`; two do the rest, of everything."""
  workdir = tmp_path / 'run'
  argv = arguments('run', workdir)
  # The save at step 4 has waited for the one at step 2.
  event = ('SIGKILL', 0, 'pretrain', 5)
  codes, _ = finish(start(argv, count=1, devices=4, event=event))
  assert codes == [-signal.SIGKILL]
  codes, said = finish(start(argv, devices=2))
  assert codes == [0, 0], said
  assert re.search('continuing at step [24] of 6', said[0])
  assert 'already done' not in said[1]
  assert_same_run(workdir, single)


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_sigterm_to_one_stops_both_at_one_step(single, tmp_path, victim):
  workdir = tmp_path / 'run'
  argv = arguments('run', workdir)
  event = ('SIGTERM', victim, 'dilute', 3)
  codes, said = finish(start(argv, devices=2, event=event))
  assert codes == [143, 143], said
  lines = [errors(text) for text in said]
  assert lines[0] == lines[1]
  assert len(lines[0]) == 1
  assert 'saved, run the same command again' in lines[0][0]
  step = orbax_store.newest_step(workdir / 'checkpoints' / 'dilute')
  assert f'interrupted at step {step} of 7' in lines[0][0]
  # One process resumes where two stopped.
  alone(argv, devices=4)
  assert_same_run(workdir, single)


@pytest.mark.slow
def test_the_coordinator_killed_while_the_others_wait(single, tmp_path):
  """Process 1 waits for an export that does not end: no collective runs."""
  workdir = tmp_path / 'run'
  shutil.copytree(single, workdir)
  shutil.rmtree(workdir / 'export')
  slow = (
    'import sys, time\n'
    'from lambda_vit_jax.exporters import export as exporter\nfrom lambda_vit_jax import main\n'
    'exporter.export = lambda *a, **k: (print("here", flush=True),'
    ' time.sleep(600))\n'
    'sys.exit(main.main(sys.argv[1:]))\n'
  )
  address = launch_local.free_address()
  job = [
    subprocess.Popen(
      [
        sys.executable,
        '-c',
        slow,
        *arguments('export', workdir),
        f'--coordinator={address}',
        '--num_processes=2',
        f'--process_id={index}',
      ],
      cwd=ROOT,
      env=launch_local.environment(index, 1, gpus=False),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  assert 'here' in job[0].stdout.readline()
  job[0].kill()
  codes, said = finish(job, timeout=60)
  assert codes == [-signal.SIGKILL, 1]
  (line,) = errors(said[1])
  assert 'process 0' in line or 'another process' in line
  assert 'stack trace' not in said[1]


@pytest.mark.slow
def test_a_process_whose_partner_never_comes_says_who_is_missing(tmp_path):
  soon = (
    'import sys\n'
    'from lambda_vit_jax import main\n'
    'from lambda_vit_jax.runtime import roll_call\n'
    'roll_call._EVERY_SECONDS = 0.5\n'
    'sys.exit(main.main(sys.argv[1:]))\n'
  )
  address = launch_local.free_address()
  alone = subprocess.Popen(
    [
      sys.executable,
      '-c',
      soon,
      *arguments('pretrain', tmp_path / 'run'),
      f'--coordinator={address}',
      '--num_processes=2',
      '--process_id=0',
    ],
    cwd=ROOT,
    env=launch_local.environment(0, 1, gpus=False),
    stderr=subprocess.PIPE,
    text=True,
  )
  line = alone.stderr.readline()
  assert 'process 0 of 2: still waiting: process 1 missing' in line
  # In the middle of a call that takes minutes.
  alone.terminate()
  codes, (said,) = finish([alone], timeout=60)
  assert codes == [143]
  assert 'interrupted by SIGTERM' in errors(said)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  'own, code, message',
  [
    (lambda index: [f'--config.seed={index}'], 2, 'different values of seed'),
    (lambda index: [f'--workdir={{}}/{index}'], 1, 'do not see what process'),
  ],
)
def test_what_has_to_be_the_same(tmp_path, own, code, message):
  job = start(
    arguments('pretrain', tmp_path / 'run', *QUICK),
    own=lambda index: [word.format(tmp_path) for word in own(index)],
  )
  codes, said = finish(job)
  assert codes == [code, code], said
  for text in said:
    (line,) = errors(text)
    assert message in line


@pytest.mark.slow
def test_the_launcher_passes_on_flags_and_codes(tmp_path):
  argv = arguments('pretrain', tmp_path / 'run', '--config.batch_size=3')
  done = subprocess.run(
    [
      sys.executable,
      'scripts/launch_local.py',
      '--processes=2',
      '--devices=1',
      *argv,
    ],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2, done.stderr
  assert 'batch_size=3 is not divisible by the 2 devices' in done.stderr


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """A dense network, trained in one process."""
  workdir = tmp_path_factory.mktemp('pretrained') / 'run'
  alone(arguments('pretrain', workdir, *QUICK))
  return workdir


def copies(pretrained, folder):
  """Two of its workdir: for one process, and for two."""
  return [shutil.copytree(pretrained, folder / name) for name in ('one', 'two')]


def assert_same_selection(double, single):
  mine, theirs = (
    json.loads((path / 'selection.json').read_text())
    for path in (double, single)
  )
  for key in ('removed', 'order', 'num_samples'):
    assert mine[key] == theirs[key]
  assert mine['set_scores'].keys() == theirs['set_scores'].keys()
  for sets, score in theirs['set_scores'].items():
    # Losses after a few training steps.
    np.testing.assert_allclose(mine['set_scores'][sets], score, atol=1e-4)


@pytest.mark.slow
def test_two_processes_rate_sets_by_the_loss_of_pixels(tmp_path):
  """Each process has half of the images, and counts their pixels."""
  single, double = tmp_path / 'one', tmp_path / 'two'

  def words(stage, workdir):
    return [
      stage,
      '--config=configs/ade20k_upernet_deit_base.py:linear,runlocal',
      f'--workdir={workdir}',
      '--config.model.image_size=8',
      '--config.segment.stride=6',
      '--config.select.criterion=probe',
      '--config.select.probe_steps=2',
      *QUICK,
    ]

  alone(words('pretrain', single))
  shutil.copytree(single, double)
  alone(words('select', single))
  codes, said = finish(start(words('select', double)))
  assert codes == [0, 0], said
  assert_same_selection(double, single)
  found = json.loads((double / 'selection.json').read_text())
  assert len(found['set_scores']) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
  'stages, options',
  [
    (
      ('select', 'linearize'),
      (
        '--config.method=linearize',
        '--config.select.trial=linear',
        f'--config.linearize.inputs={LINEAR_INPUTS}',
        '--config.linearize.recentre=True',
        '--config.linearize.refit=True',
      ),
    ),
    (
      ('select', 'linearize'),
      (
        '--config.method=linearize',
        '--config.select.criterion=first',
        '--config.linearize.refit=True',
        '--config.linearize.num_drop_blocks=1',
      ),
    ),
    (
      ('select', 'linearize'),
      (
        '--config.method=linearize',
        '--config.select.criterion=output',
        "--config.linearize.inputs=('auto',)",
      ),
    ),
    (
      ('select', 'linearize'),
      (
        '--config.method=linearize',
        '--config.select.criterion=last',
        '--config.linearize.polish_steps=3',
      ),
    ),
    (
      ('select',),
      ('--config.select.criterion=probe', '--config.select.probe_steps=2'),
    ),
  ],
  ids=['linear', 'dropped', 'output', 'polished', 'probe'],
)
def test_two_processes_choose_and_fit_as_one_does(
  pretrained, tmp_path, stages, options
):
  single, double = copies(pretrained, tmp_path)
  for stage in stages:
    alone(arguments(stage, single, *QUICK, *options))
    codes, said = finish(start(arguments(stage, double, *QUICK, *options)))
    assert codes == [0, 0], said
  assert_same_selection(double, single)
  if 'linearize' in stages:
    found, wanted = (
      load.load_export(path / 'linear') for path in (double, single)
    )
    assert found.attention_modes == wanted.attention_modes
    assert 'linear' in found.attention_modes
    assert found.kept_blocks == wanted.kept_blocks
    dropped = '--config.linearize.num_drop_blocks=1' in options
    assert found.depth == (2 if dropped else 3)
    images = np.random.default_rng(0).normal(size=(32, 8, 8, 1))
    # The same sums, in another order, through a least-squares solution.
    np.testing.assert_allclose(
      found(np.float32(images)), wanted(np.float32(images)), atol=3e-4
    )
    if dropped:
      # A refit network has directions that hardly any input shows: numbers
      # that multiply them are free within 1e-2, what they make is not.
      return
    for a, b in zip(
      jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True
    ):
      np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.slow
def test_two_processes_compress_as_one_does(pretrained, tmp_path):
  single, double = copies(pretrained, tmp_path)
  options = (
    '--config.method=compress',
    '--config.compress.target_speedup=1.3',
    '--config.compress.parts=("attention", "mlps")',
    '--config.compress.num_images=128',
  )
  alone(arguments('compress', single, *QUICK, *options))
  codes, said = finish(start(arguments('compress', double, *QUICK, *options)))
  assert codes == [0, 0], said
  records = [
    json.loads((path / 'compression.json').read_text())
    for path in (double, single)
  ]
  steps = [[(s['block'], s['part']) for s in r['steps']] for r in records]
  assert steps[0] == steps[1]
  found, wanted = (
    load.load_export(path / 'compressed') for path in (double, single)
  )
  images = np.random.default_rng(0).normal(size=(32, 8, 8, 1))
  # The same sums, in another order, through least-squares solutions.
  np.testing.assert_allclose(
    found(np.float32(images)), wanted(np.float32(images)), atol=1e-3
  )
