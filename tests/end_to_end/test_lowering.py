"""Every program lowers for GPUs and TPUs, with nothing of a CPU in it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lambda_vit_jax as lv
from benchmarks import gpu
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.runtime import compilation, sharding
from lambda_vit_jax.training import optim, step
from lambda_vit_jax.training.dilution import Dilution
from tests.support import lowering

pytestmark = pytest.mark.slow

PLATFORMS = ('cuda', 'tpu')
# Nothing else may be called that is not StableHLO: a callback to Python, or a
# routine of a CPU. All of these are XLA's own on each device.
CALLS = {'Sharding', 'annotate_device_placement', 'mhlo.topk', 'mhlo.erf'}
CALLS |= {'cu_threefry2x32_ffi', 'chlo.erf', 'SPMDFullToShardShape'}
CALLS |= {'SPMDShardToFullShape', 'shape_assertion'}


@pytest.fixture(scope='module')
def programs():
  """Training, search, fits, compression and evaluation of a small network."""
  rng = np.random.default_rng(0)
  model = create_model('vit_nano_patch2_8', seed=0)
  images = rng.normal(size=(128, 8, 8, 1)).astype(np.float32)
  labels = (np.arange(128) % 10).astype(np.int32)
  batch = {'image': images, 'label': labels, 'mask': np.ones(128, bool)}
  with lowering.recorded() as found:
    model(images)
    lv.entropy_profile(model, [images])
    lv.nose(model, [images], num_layers=1)
    lv.nose(model, [images], num_layers=1, criterion='output')
    linear = lv.linearize(model, [images], (0,))
    lv.refit(linear, model, [images])
    lv.recentre(linear, model, [images])
    lv.compress(model, [images], target_speedup=1.2)
    lv.polish(linear, model, [images], steps=1)
    accuracy.evaluate_model(model, [batch], sharding.make_mesh())
    gpu.training_call(model.replace(), images[:8])()
  return found


def test_the_work_is_what_it_should_be(programs):
  """A list that shrank would let every law below pass."""
  names = ' '.join(programs)
  for part in (
    'models.build.forward',
    'training.step.make_train_step',
    'evaluation.accuracy.counts_everywhere',
    'selection.trial_readout',
    'training_free.map_fitter',
    'training_free.mlp_refit',
    'compression.streams',
    'analysis.blocks',
  ):
    assert part in names, programs.keys()


@pytest.mark.parametrize('platform', PLATFORMS)
def test_programs_lower_without_what_only_a_cpu_has(programs, platform):
  problems = []
  for name, entry in programs.items():
    text = lowering.lowered(entry, platform)
    if 'f64' in text:
      problems.append(f'{name}: float64')
    called = set(re.findall(r'custom_call @([\w.]+)', text))
    problems += [f'{name}: calls {other}' for other in called - CALLS]
  assert not problems


@pytest.mark.parametrize('platform', PLATFORMS)
@pytest.mark.parametrize('distill', ['streams', 'hard'])
def test_a_step_with_everything_lowers(platform, distill):
  """λ, drop path, bfloat16, mixing, a teacher, an average and clipping."""
  model = create_model('vit_nano_patch2_8', seed=0)
  module = model.module.clone(
    attention_modes=('full', 'diluted', 'full'),
    drop_path_rates=(0.0, 0.1, 0.2),
    dtype=jnp.bfloat16,
  )
  settings = {
    'weight_decay': 0.05, 'b1': 0.9, 'b2': 0.999, 'clip_norm': 1.0,
    'layer_decay': 0.9, 'frozen': '', 'accumulate_steps': 1,
  }  # fmt: skip
  optimizer = optim.make_optimizer(settings, lambda _: 1e-4, model.depth)
  mesh = sharding.make_mesh(1)
  state = step.init_state(model.params, optimizer, with_ema=True)
  loss = step.LossSettings(0.1, 0.8, 1.0, 4, distill, ema_decay=0.99)
  program = step.make_train_step(
    module,
    optimizer,
    loss,
    Dilution((1,), 10),
    0,
    mesh,
    sharding.tree_shardings(state, mesh),
    model.module,
  )
  images, labels = np.zeros((16, 8, 8, 1), np.float32), np.zeros(16, np.int32)
  batch = sharding.put_batch({'image': images, 'label': labels}, mesh)
  taught = sharding.replicate(model.params, mesh)
  text = lowering.lowered((program, (state, batch, taught), {}, None), platform)
  assert 'bf16' in text
  assert 'f64' not in text
  assert not set(re.findall(r'custom_call @([\w.]+)', text)) - CALLS


def test_products_of_statistics_are_of_whole_float32(programs):
  """Those of sums, entropies, least squares and the streams they are of.

  TPUs would round the factors of "float32" products to bfloat16, and GPUs to
  TF32.
  """
  problems = []
  for name, entry in programs.items():
    for line in lowering.lowered(entry, 'tpu').splitlines():
      if 'dot_general' in line and re.search(r'xf32>\) ->', line):
        exact = 'HIGHEST, HIGHEST' in line
        if not exact and re.match(
          r'(selection|training_free|analysis|compr)', name
        ):
          problems.append(name)
  assert not sorted(set(problems))


def test_accelerators_get_no_options_of_the_cpus_compiler(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  compilation._has_options.cache_clear()
  try:
    assert compilation.options_for(np.ones((512, 512), np.float32)) == {}
  finally:
    compilation._has_options.cache_clear()
