"""Small runs of the stages: the digits with a network of three blocks."""

import pathlib

import jax
import numpy as np

from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter

ROOT = pathlib.Path(__file__).parents[2]


OVERRIDES = (
  '--config.init=',
  '--config.model.variant=vit_nano_patch2_8',
  '--config.batch_size=32',
  '--config.pretrain.steps=6',
  '--config.pretrain.warmup_steps=1',
  '--config.select.num_layers=1',
  '--config.dilute.warmup_steps=1',
  '--config.dilute.dilution_steps=4',
  '--config.dilute.settle_steps=3',
  '--config.checkpoint_every=2',
  '--config.log_every=1',
  '--config.benchmark.rounds=2',
  '--config.evaluate.baseline=False',
)


def arguments(stage, workdir, *more):
  return [
    stage,
    f'--config={ROOT}/configs/digits.py',
    f'--workdir={workdir}',
    *OVERRIDES,
    *more,
  ]


def open_run(workdir, *more):
  """A run of the digits with `OVERRIDES`, on two devices."""
  return _open(arguments('run', workdir, *more), workdir)


def open_config(config, workdir):
  """A run of a shipped config, `imagenet_deit_tiny:runlocal`, on two devices."""
  name, _, argument = config.partition(':')
  path = f'--config={ROOT}/configs/{name}.py:{argument}'
  return _open(['run', path, f'--workdir={workdir}'], workdir)


def _open(argv, workdir):
  _, config, _ = flags.parse(argv)
  run = Run(config.to_dict(), str(workdir), Reporter(quiet=True))
  # Two of the eight devices: programs for fewer devices compile faster.
  grid = np.asarray(jax.devices()[:2]).reshape(2, 1)
  run.mesh = jax.sharding.Mesh(grid, sharding.BATCH_AXES)
  return run
