"""Training without checkpoints: which step sees what, and when it stops."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models.build import init_params
from lambda_vit_jax.training import in_memory
from tests.support.training_jobs import make_job, make_mesh


@pytest.fixture(scope='module')
def job(tiny_variant):
  """Three steps of one network, two of another; a batch holds its step."""

  def numbered(first):
    for step in itertools.count(first):
      yield {
        'image': np.zeros((8, 8, 8, 1), np.float32),
        'label': np.full(8, step, np.int32),
      }

  return dataclasses.replace(make_job(tiny_variant), make_batches=numbered)


@pytest.fixture
def steps(monkeypatch):
  """What each step was given; none computes anything."""
  seen = []

  def make(module, *others):
    def step(state, batch, taught):
      seen.append((module, int(batch['label'][0]), taught))
      return state, {'loss': math.nan if len(seen) == 4 else 1.0}

    return step

  monkeypatch.setattr(in_memory, 'make_train_step', make)
  return seen


def test_each_batch_is_seen_once_by_the_network_of_its_phase(job, steps):
  shorter = dataclasses.replace(
    job, phases=(dataclasses.replace(job.phases[0], until=3),)
  )
  params = init_params(job.phases[0].module, 0)
  progress = []
  in_memory.run(
    shorter, params, make_mesh(), 'dilute', lambda *x: progress.append(x)
  )
  assert [number for _, number, _ in steps] == [0, 1, 2]
  assert progress == [(1, 3), (2, 3), (3, 3)]
  # The fourth step, with which the second phase begins, has no loss.
  steps.clear()
  with pytest.raises(ModelError, match='not finite at step 4'):
    in_memory.run(job, params, make_mesh(), 'dilute')
  assert [number for _, number, _ in steps] == [0, 1, 2, 3]
  first, second = (phase.module for phase in job.phases)
  assert [module for module, _, _ in steps] == [first, first, first, second]


def test_the_teacher_is_on_every_device_before_the_first_step(job, steps):
  """Otherwise each step would send it again."""
  module = job.phases[0].module
  params = init_params(module, 0)
  shorter = dataclasses.replace(
    job, phases=job.phases[:1], teacher=(module, params)
  )
  in_memory.run(shorter, params, make_mesh(), 'dilute')
  for leaf in jax.tree.leaves(steps[0][2]):
    assert len(leaf.devices()) == 2
    assert leaf.is_fully_replicated
