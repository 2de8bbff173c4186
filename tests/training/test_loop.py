"""The loop: exact resumption, the switch at λ = 0, state after failures."""

import dataclasses
import functools
import itertools
import logging
import re
import signal
import types

import jax
import numpy as np
import pytest

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.errors import StoppedError, UsageError
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.build import (
  abstract_params,
  init_params,
  make_module,
)
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.variants import Variant
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training import loop, persistence
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics
from lambda_vit_jax.training.step import LossSettings
from tests.support.training_jobs import (
  LAYERS,
  make_batches,
  make_job,
  make_mesh,
  shared_programs,
)
from tests.support.trees import assert_same


@pytest.fixture(scope='module', autouse=True)
def programs():
  with shared_programs():
    yield


@pytest.fixture(scope='module')
def mesh():
  return make_mesh()


@pytest.fixture(scope='module')
def job(tiny_variant):
  return make_job(tiny_variant)


def tiny_of(job):
  """The job's dense architecture as a variant."""
  module = job.phases[0].module
  return Variant(
    'tiny',
    module.image_size[0],
    module.patch_size,
    module.embed_dim,
    module.depth,
    module.num_heads,
    num_classes=module.num_classes,
    mean=(0.5,),
    std=(0.5,),
  )


def run(job, workdir, mesh, batches=None):
  if batches:
    job = dataclasses.replace(job, make_batches=batches)
  checkpointer = orbax_store.Checkpointer(workdir / 'checkpoints', keep=9)
  try:
    return loop.fit(
      job,
      lambda: init_params(job.phases[0].module, 0),
      checkpointer,
      mesh,
      MetricsWriter(workdir),
      Reporter(quiet=True),
    )
  finally:
    checkpointer.close()


@pytest.fixture(scope='module')
def undisturbed(job, mesh, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed')
  return run(job, workdir, mesh), read_metrics(workdir / 'metrics.jsonl')


def test_removed_attention_leaves_the_tree(undisturbed, job):
  params, _ = undisturbed
  expected = abstract_params(job.phases[1].module)
  assert jax.tree.structure(params) == jax.tree.structure(expected)
  for layer in LAYERS:
    assert set(params[block_name(layer)]) == {'norm2', 'mlp'}


def test_metrics_have_one_line_per_step_and_the_factor(undisturbed):
  rows = undisturbed[1]
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  factors = [row['lambda'] for row in rows]
  np.testing.assert_allclose(factors, [1, 2 / 3, 1 / 3, 0, 0], rtol=1e-6)


def test_metrics_have_the_rate_of_their_step(undisturbed, job):
  rates = [row['learning_rate'] for row in undisturbed[1]]
  assert rates == [float(job.learning_rate(step)) for step in range(5)]
  # With a warm-up and a cosine, every step has its own.
  assert len(set(rates)) == 5


def test_a_step_runs_the_network_of_its_phase(job):
  first, second = (phase.module for phase in job.phases)
  assert [job.module_at(step) for step in range(5)] == 3 * [first] + 2 * [
    second
  ]
  assert job.meta_at(2)['model']['removed_layers'] == []
  assert job.meta_at(3)['model']['removed_layers'] == list(LAYERS)


def test_evaluations_are_of_their_phase_and_no_part_of_the_speed(
  job, mesh, tmp_path, monkeypatch
):
  """A clock that ticks once each time that it is read."""
  seconds, seen, reported = [1e9], [], []

  def tick(count=1):
    seconds[0] += count
    return seconds[0]

  def evaluate(module, params, factors):
    seen.append(module)
    tick(1000)
    return {'loss': 0.0, 'accuracy': 0.0}

  monkeypatch.setattr(loop, 'time', types.SimpleNamespace(monotonic=tick))
  monkeypatch.setattr(
    loop.step_memory, 'report', lambda stage, *others: reported.append(stage)
  )
  run(dataclasses.replace(job, evaluate=evaluate, eval_every=2), tmp_path, mesh)
  # At steps 2, 4, and the ends of the phases, 3 and 5.
  first, second = (phase.module for phase in job.phases)
  assert seen == [first, second, second, second]
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  # Eight images in one tick, or in the two that are left beside an evaluation;
  # the first row began at another clock.
  for row in rows[1:]:
    assert row['images_per_second'] in (8.0, 4.0)
  # What a step needs is said once.
  assert reported == ['dilute']


@pytest.mark.parametrize('stop_after', [1, 2, 3, 4])
def test_resuming_gives_the_same_bits(
  job, mesh, tmp_path, undisturbed, stop_after
):
  class PowerCutError(Exception):
    pass

  def until_cut(step):
    for count, batch in enumerate(make_batches(step)):
      if step + count == stop_after:
        raise PowerCutError
      yield batch

  with pytest.raises(PowerCutError):
    run(job, tmp_path, mesh, until_cut)
  params = run(job, tmp_path, mesh)
  assert_same(params, undisturbed[0])
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  losses = [row['loss'] for row in rows]
  assert losses == [row['loss'] for row in undisturbed[1]]


def test_a_finished_job_is_not_run_again(job, mesh, tmp_path, undisturbed):
  run(job, tmp_path, mesh)

  def no_batches(step):
    raise AssertionError('a finished job asked for data')

  assert_same(run(job, tmp_path, mesh, no_batches), undisturbed[0])


def test_sigterm_saves_and_says_so(job, mesh, tmp_path, undisturbed):
  def with_signal(step):
    for count, batch in enumerate(make_batches(step)):
      if step + count == 1:
        signal.raise_signal(signal.SIGTERM)
      yield batch

  with pytest.raises(StoppedError, match='step 2 of 5') as info:
    run(job, tmp_path, mesh, with_signal)
  assert info.value.exit_code == 143
  assert_same(run(job, tmp_path, mesh), undisturbed[0])


@pytest.mark.parametrize('step, evaluations', [(2, 1), (4, 4)])
def test_a_signal_skips_evaluations_that_decide_nothing(
  job, mesh, tmp_path, step, evaluations
):
  """Of step 2 λ is above 0; step 4 could be the best, whenever a signal comes."""
  done = []

  def evaluate(module, params, factors):
    done.append(module)
    return {'loss': 0.0, 'accuracy': 0.5}

  def with_signal(first):
    for count, batch in enumerate(make_batches(first)):
      if first + count == step - 1:
        signal.raise_signal(signal.SIGTERM)
      yield batch

  job = dataclasses.replace(job, evaluate=evaluate, eval_every=1)
  with pytest.raises(StoppedError, match=f'step {step} of 5'):
    run(job, tmp_path, mesh, with_signal)
  assert len(done) == evaluations


def test_the_device_is_at_most_one_step_behind(
  job, mesh, tmp_path, monkeypatch
):
  """Steps that were only asked for would all have to end after a signal."""
  events = []
  make, wait = loop.make_train_step, jax.block_until_ready

  def counted(*words, **options):
    step = make(*words, **options)
    numbers = itertools.count(1)

    def run_step(state, batch, teacher):
      state, values = step(state, batch, teacher)
      number = next(numbers)
      events.append(f'asked for {number}')
      return state, values | {'number': number}

    run_step.lower = step.lower
    return run_step

  def wait_for(values):
    if isinstance(values, dict) and 'number' in values:
      events.append(f'waited for {values["number"]}')
    return wait(values)

  monkeypatch.setattr(loop, 'make_train_step', counted)
  monkeypatch.setattr(jax, 'block_until_ready', wait_for)
  whole = dataclasses.replace(job.phases[0], until=5)
  changed = dataclasses.replace(
    job, phases=(whole,), log_every=5, checkpoint_every=5
  )
  run(changed, tmp_path, mesh)
  assert events == [
    'asked for 1',
    'asked for 2',
    'waited for 1',
    'asked for 3',
    'waited for 2',
    'asked for 4',
    'waited for 3',
    'asked for 5',
    'waited for 4',
  ]


def test_a_nan_names_its_step_and_keeps_the_last_good_state(
  job, mesh, tmp_path
):
  def poisoned(step):
    for count, batch in enumerate(make_batches(step)):
      if step + count == 2:
        batch['image'][0, 0, 0, 0] = np.nan
      yield batch

  with pytest.raises(loop.DivergedError, match='nan at step 2'):
    run(job, tmp_path, mesh, poisoned)
  assert orbax_store.Checkpointer(tmp_path / 'checkpoints').latest_step() == 2


def test_losses_across_the_switch_equal_staying(job, mesh, undisturbed):
  # The program at λ = 0 and the one without attention add the same terms,
  # except for exact zeros.
  stay = dataclasses.replace(
    job, phases=(dataclasses.replace(job.phases[0], until=5),)
  )
  state = persistence.restore_or_init(
    stay,
    lambda: init_params(stay.phases[0].module, 0),
    type('Empty', (), {'latest_step': lambda self: None})(),
    mesh,
    Reporter(quiet=True),
  )
  step = loop.make_train_step(
    stay.phases[0].module,
    stay.optimizer,
    stay.loss,
    stay.dilution,
    stay.seed,
    mesh,
    sharding.tree_shardings(state, mesh),
  )
  losses = []
  for _, batch in zip(range(5), make_batches(0), strict=False):
    state, values = step(state, sharding.put_batch(batch, mesh), None)
    losses.append(float(values['loss']))
  np.testing.assert_allclose(
    losses, [row['loss'] for row in undisturbed[1]], atol=1e-6
  )


@pytest.mark.parametrize(
  'kind', ['soft', pytest.param('feature', marks=pytest.mark.slow)]
)
def test_distillation_and_averaging_train_the_average(
  job, mesh, tmp_path, kind
):
  teacher = make_module(tiny_of(job))
  taught = dataclasses.replace(
    job,
    phases=tuple(
      dataclasses.replace(
        phase,
        module=phase.module.clone(drop_path_rates=(0.0,) * 3),
        until=until,
      )
      for phase, until in zip(job.phases, (1, 2), strict=True)
    ),
    dilution=Dilution(LAYERS, 1),
    loss=LossSettings(distill=kind, distill_weight=1.0, ema_decay=0.9),
    teacher=(teacher, init_params(teacher, 0)),
  )
  average = run(taught, tmp_path, mesh)
  # The attention is dropped from the average as from the parameters.
  assert set(average['block00']) == {'norm2', 'mlp'}
  shapes = abstract_params(job.phases[1].module)
  shapes = orbax_store.abstract_like(
    shapes, sharding.tree_shardings(shapes, mesh)
  )
  checkpointer = orbax_store.Checkpointer(tmp_path / 'checkpoints')
  saved = checkpointer.restore(2, {'params': shapes, 'ema': shapes})
  checkpointer.close()
  assert_same(average, saved['ema'])
  # The warm-up's first rate is 0: the average is of the initial parameters,
  # twice, and of those after the second step.
  start = init_params(job.phases[0].module, 0)
  start = surgery.prune_tree(start, LAYERS)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
    average,
    jax.tree.map(lambda p, q: 0.9 * p + 0.1 * q, start, saved['params']),
  )
  assert np.any(average['head']['kernel'] != saved['params']['head']['kernel'])
  rows = read_metrics(tmp_path / 'metrics.jsonl')
  # A student that equals its teacher (λ = 1, no drop path) has a loss of 0, up
  # to squared float32 rounding; at λ = 0 it does not.
  assert abs(rows[0]['loss']) < 1e-6
  assert rows[1]['loss'] > 1e-4


def test_unknown_distillation_is_named():
  with pytest.raises(UsageError, match="distill='sotf'"):
    LossSettings(distill='sotf')


def test_nothing_compiles_but_at_the_switch(job, mesh, tmp_path):
  # Six steps of dilution and four after it, with saving and logging: each of
  # the two programs is compiled once, whatever λ is.
  long = dataclasses.replace(
    job,
    phases=(
      dataclasses.replace(job.phases[0], until=6),
      dataclasses.replace(job.phases[1], until=10),
    ),
    dilution=Dilution(LAYERS, 6),
    checkpoint_every=3,
    log_every=1,
  )
  # The step at which each program is compiled; JAX also logs those that come
  # from its cache on disk.
  compiled: list[tuple[int, str]] = []
  now = [0]

  class Listener(logging.Handler):
    def emit(self, record):
      found = re.match(r'Compiling (\S+) with', record.getMessage())
      if found:
        compiled.append((now[0], found[1]))

  def counting(step):
    for count, batch in enumerate(make_batches(step)):
      now[0] = step + count
      yield batch

  logger = logging.getLogger('jax._src.interpreters.pxla')
  listener = Listener()
  logger.addHandler(listener)
  try:
    with jax.log_compiles():
      run(long, tmp_path, mesh, counting)
  finally:
    logger.removeHandler(listener)
  steps = [step for step, name in compiled if name == 'jit(step)']
  assert steps == [0, 6]
  # Programs for logging and saving are compiled in the first steps only.
  assert {step for step, _ in compiled} <= {0, 1, 2, 3, 6}
