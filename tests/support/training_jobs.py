"""A short training job: three steps of dilution and two steps after it."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.models.build import make_module
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.models.modes import modes_without
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import dilution, loop, optim
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.step import LossSettings

LAYERS = (0, 2)
OPTIMIZER = {
  'weight_decay': 0.05,
  'b1': 0.9,
  'b2': 0.999,
  'clip_norm': 1.0,
  'layer_decay': 1.0,
  'frozen': '',
  'accumulate_steps': 1,
}


def make_batches(step):
  """Endless batches; like the pipeline's, each is a function of its step."""
  while True:
    rng = np.random.default_rng(step)
    yield {
      'image': rng.normal(size=(8, 8, 8, 1)).astype(np.float32),
      'label': rng.integers(0, 10, 8).astype(np.int32),
    }
    step += 1


def make_mesh():
  """Two of the eight devices: enough to shard, quick to compile for."""
  grid = np.asarray(jax.devices()[:2]).reshape(2, 1)
  return jax.sharding.Mesh(grid, sharding.BATCH_AXES)


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
  """While open, runs of one job share its programs.

  Most of a short run's time is tracing them. Equal arguments make the same
  program: what a run computes does not depend on who has traced it.
  """
  make, known = loop.make_train_step, {}

  def make_once(*arguments):
    leaves, structure = jax.tree.flatten(arguments)
    key = (*leaves, structure)
    if key not in known:
      known[key] = make(*arguments)
    return known[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, 'make_train_step', make_once)
    yield


def make_job(variant):
  """Three steps of dilution, two without the diluted attention layers."""
  module = make_module(variant, drop_path_rate=0.2)
  modes = module.attention_modes
  diluting = module.clone(attention_modes=dilution.diluted_modes(LAYERS, modes))
  pruned = module.clone(attention_modes=modes_without(LAYERS, modes))
  schedule = optim.learning_rate_schedule(1e-3, 5, 1, 1e-5)
  return Job(
    stage='dilute',
    phases=(
      Phase(diluting, until=3),
      Phase(pruned, until=5, removed=LAYERS),
    ),
    optimizer=optim.make_optimizer(OPTIMIZER, schedule, module.depth),
    learning_rate=schedule,
    loss=LossSettings(label_smoothing=0.1),
    dilution=Dilution(LAYERS, 3),
    seed=0,
    steps_per_epoch=10,
    make_batches=make_batches,
    teacher=None,
    batch_size=8,
    # Of some network: nothing here rebuilds this one from it.
    description=describe(create_model('vit_nano_patch2_8')),
    log_every=1,
    checkpoint_every=1,
  )
