"""What a step needs is estimated, and said before it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.models.build import init_params, make_module
from lambda_vit_jax.runtime import compilation, sharding
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training import step_memory
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.step import (
  LossSettings,
  init_state,
  make_train_step,
)
from tests.support.training_jobs import make_job

KIB = 256


@pytest.fixture
def said():
  lines = []
  reporter = Reporter()
  reporter.say = lines.append
  reporter.warn = lambda line: lines.append(f'warning: {line}')
  return lines, reporter


def product(x, y):
  return (x @ y) @ x


def test_arguments_results_and_what_is_between_count(said, monkeypatch):
  """Three matrices of 256 KiB are there, or are made; one is in between."""
  lines, reporter = said
  monkeypatch.setattr(step_memory, 'GIB', 1024)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 1)
  monkeypatch.setattr(step_memory, 'free_bytes', lambda: (None, 'here'))
  step = compilation.Program(product)
  x = y = jnp.ones((KIB, KIB))
  step_memory.report('pretrain', 64, step, (x, y), reporter)
  (line,) = lines
  assert line.startswith('pretrain: a step of 64 images needs ')
  needed = float(line.split()[-3])
  assert 3 * KIB <= needed <= 5 * KIB


@pytest.mark.parametrize('free, warned', [(2**40, False), (1000, True)])
def test_more_than_there_is_is_a_warning(said, monkeypatch, free, warned):
  lines, reporter = said
  monkeypatch.setattr(step_memory, 'free_bytes', lambda: (free, 'here'))
  x = jnp.ones((KIB, KIB))
  step_memory.report(
    'dilute', 8, compilation.Program(product), (x, x), reporter
  )
  assert len(lines) == 1 + warned
  if warned:
    assert 'warning: dilute: ' in lines[1]
    assert 'lower batch_size' in lines[1]


def test_this_machine_has_some_memory():
  free, where = step_memory.free_bytes()
  assert where == 'here'
  assert free is None or free > 2**20


def test_devices_of_a_cpu_share_its_pages(monkeypatch):
  known = {'SC_PHYS_PAGES': 10**6, 'SC_PAGE_SIZE': 4096}
  monkeypatch.setattr(step_memory.os, 'sysconf', known.__getitem__)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 8)
  assert step_memory.device_bytes() == 4096 * 10**6 // 8


@pytest.mark.parametrize('ema, fsdp', [(0.0, 1), (0.5, 2)])
def test_copies_of_the_parameters(tiny_variant, ema, fsdp):
  """Without images: parameters, gradients, two moments and the average."""
  module = make_module(tiny_variant)
  number = sum(leaf.size for leaf in jax.tree.leaves(init_params(module, 0)))
  found = step_memory.estimate(module, 0, fsdp, with_ema=ema > 0)
  assert found == 4 * (4 + (ema > 0)) * number // fsdp


def test_the_estimate_is_a_lower_bound_of_what_the_compiler_plans(tiny_variant):
  job = make_job(tiny_variant)
  module, images = make_module(tiny_variant), 64
  grid = np.asarray(jax.devices()[:1]).reshape(1, 1)
  mesh = jax.sharding.Mesh(grid, sharding.BATCH_AXES)
  state = jax.eval_shape(
    lambda: init_state(init_params(module, 0), job.optimizer, with_ema=False)
  )
  step = make_train_step(
    module,
    job.optimizer,
    LossSettings(),
    Dilution(),
    0,
    mesh,
    sharding.tree_shardings(state, mesh),
  )
  batch = {
    'image': jax.ShapeDtypeStruct((images, 8, 8, 1), jnp.float32),
    'label': jax.ShapeDtypeStruct((images,), jnp.int32),
  }
  planned = step.lower(state, batch, None).compile().memory_analysis()
  total = planned.temp_size_in_bytes + planned.argument_size_in_bytes
  estimate = step_memory.estimate(module, images)
  assert total / 3 < estimate < total


def test_rematerialisation_takes_less(tiny_variant):
  module = make_module(tiny_variant)
  less = step_memory.estimate(module.clone(remat=True), 64)
  assert less < step_memory.estimate(module, 64)
