"""One training step against the same equations in plain NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lambda_vit_jax.configs import common

from lambda_vit_jax.models.build import (
  apply_module,
  forward,
  init_params,
  make_module,
)
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import dilution, losses, mixing
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.step import (
  LossSettings,
  init_state,
  make_train_step,
)
from tests.support.trees import assert_same

LAYERS = (0, 2)
# At step 1 of 4, λ = 3/4: in neither branch of the schedule's ends.
PLAN = Dilution(LAYERS, 4)
FACTOR = np.float32([0.75, 1.0, 0.75])
STEP = 1
# One whose draws mix visibly, at the next step and with the next seed too.
SEED = 7
RATE = 0.1

# Float32 logits and losses of three blocks, against float64 sums.
CLOSE = {'rtol': 2e-5, 'atol': 2e-6}


def test_a_teacher_has_the_weight_of_the_configs_by_default():
  section = common.base().dilute
  settings = LossSettings()
  assert settings.distill_weight == section.distill_weight
  assert settings.temperature == section.distill_temperature


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.normal(size=(8, 8, 8, 1)).astype(np.float32),
    'label': rng.integers(0, 10, 8).astype(np.int32),
  }


@pytest.fixture(scope='module')
def module(tiny_variant):
  dense = make_module(tiny_variant)
  modes = dilution.diluted_modes(LAYERS, dense.attention_modes)
  return dense.clone(attention_modes=modes)


@pytest.fixture(scope='module')
def params(module):
  """Far from the initial zeros, so that every term of the loss shows."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: np.float32(leaf + 0.1 * rng.normal(size=leaf.shape)),
    init_params(module, 0),
  )


@pytest.fixture(scope='module')
def teacher(tiny_variant):
  dense = make_module(tiny_variant)
  rng = np.random.default_rng(2)
  return dense, jax.tree.map(
    lambda leaf: np.float32(leaf + 0.2 * rng.normal(size=leaf.shape)),
    init_params(dense, 5),
  )


def run_steps(
  module,
  params,
  settings=None,
  count=1,
  seed=SEED,
  rate=RATE,
  teacher=None,
  batch=None,
):
  """The states, on the host, and metrics of some steps on one batch."""
  mesh = jax.sharding.Mesh(
    np.asarray(jax.devices()[:1]).reshape(1, 1), sharding.BATCH_AXES
  )
  settings = settings or LossSettings()
  state = init_state(params, optax.sgd(rate), bool(settings.ema_decay))
  state = dataclasses.replace(state, step=jnp.int32(STEP))
  shardings = sharding.tree_shardings(state, mesh)
  state = jax.device_put(jax.tree.map(np.array, state), shardings)
  step = make_train_step(
    module,
    optax.sgd(rate),
    settings,
    PLAN if 'diluted' in module.attention_modes else Dilution(),
    seed,
    mesh,
    shardings,
    teacher=teacher and teacher[0],
  )
  results = []
  for _ in range(count):
    placed = sharding.put_batch(batch or make_batch(), mesh)
    state, metrics = step(state, placed, teacher and teacher[1])
    # Copied: the next step donates the state.
    results.append(jax.tree.map(np.array, (state, metrics)))
  return results


def mixed_batch(settings, seed=SEED, step=STEP):
  """The step's images and smoothed targets, from its documented key."""
  batch = make_batch()
  smoothing = settings.label_smoothing
  targets = (1 - smoothing) * np.eye(10)[batch['label']] + smoothing / 10
  key = jax.random.fold_in(jax.random.key(seed), step)
  images, targets = mixing.mix(
    batch['image'],
    targets.astype(np.float32),
    jax.random.split(key)[1],
    mixup_alpha=settings.mixup_alpha,
    cutmix_alpha=settings.cutmix_alpha,
    group_size=settings.mix_size,
  )
  return np.asarray(images), np.asarray(targets, np.float64)


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def cross_entropy(logits, targets):
  return -(targets * log_softmax(logits)).sum(-1).mean()


MIXES = [
  LossSettings(),
  LossSettings(label_smoothing=0.3),
  LossSettings(mixup_alpha=0.8, label_smoothing=0.1),
  LossSettings(cutmix_alpha=1.0),
  # Far apart, so that swapped parameters show.
  LossSettings(mixup_alpha=0.2, cutmix_alpha=8.0),
  LossSettings(mixup_alpha=0.8, mix_size=4),
]


@pytest.mark.parametrize('settings', MIXES, ids=range(len(MIXES)))
def test_loss_is_that_of_mixed_images_and_smoothed_targets(
  module, params, settings
):
  ((_, metrics),) = run_steps(module, params, settings)
  images, targets = mixed_batch(settings)
  logits, _ = forward(module, params, images, FACTOR)
  np.testing.assert_allclose(
    metrics['loss'], cross_entropy(logits, targets), **CLOSE
  )
  # Each setting changes the loss: a step that ignored it would be noticed.
  batch = make_batch()
  plain, _ = forward(module, params, batch['image'], FACTOR)
  expected = cross_entropy(plain, np.eye(10)[batch['label']])
  changed = abs(metrics['loss'] - expected) > 1e-3
  assert changed == (settings != LossSettings())


def test_accuracy_is_against_the_unmixed_labels(module, params):
  settings = LossSettings(mixup_alpha=0.8)
  ((_, metrics),) = run_steps(module, params, settings)
  logits, _ = forward(module, params, mixed_batch(settings)[0], FACTOR)
  hits = np.asarray(logits).argmax(-1) == make_batch()['label']
  assert metrics['accuracy'] == hits.mean()


def test_parameters_move_against_the_gradient(module, params):
  ((state, metrics),) = run_steps(module, params)
  images, targets = mixed_batch(LossSettings())

  @jax.jit
  @jax.grad
  def gradient(params):
    logits, _ = apply_module(
      module, params, images, dilution_factor=jnp.asarray(FACTOR)
    )
    log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return -(jnp.float32(targets) * log_probs).sum(-1).mean()

  gradients = jax.tree.map(np.asarray, gradient(params))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, **CLOSE),
    state.params,
    jax.tree.map(lambda p, g: p - np.float32(RATE) * g, params, gradients),
  )
  squares = sum(np.sum(np.float64(g) ** 2) for g in jax.tree.leaves(gradients))
  np.testing.assert_allclose(
    metrics['gradient_norm'], np.sqrt(squares), **CLOSE
  )
  assert metrics['lambda'] == 0.75
  assert state.step == STEP + 1


def assert_averages(results, average, decay):
  """Each state's average is that of the one before and its parameters."""
  for state, _ in results:
    average = jax.tree.map(
      lambda e, p: decay * np.float64(e) + (1 - decay) * np.float64(p),
      average,
      state.params,
    )
    # A few float32 roundings per step.
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
      state.ema,
      average,
    )


def test_average_starts_at_the_parameters_and_decays(module, params):
  decay = 0.9
  results = run_steps(module, params, LossSettings(ema_decay=decay), count=3)
  assert_averages(results, params, decay)


def test_average_begins_anew_at_its_step(module, params):
  """Until then it is the parameters: none of an earlier network stay in it."""
  decay, start = 0.9, STEP + 2
  settings = LossSettings(ema_decay=decay, ema_start=start)
  results = run_steps(module, params, settings, count=4)
  for state, _ in results[:2]:
    assert_same(state.ema, state.params)
  assert_averages(results[2:], results[1][0].params, decay)


RANDOM = [
  (0.5, LossSettings()),
  (0.0, LossSettings(mixup_alpha=0.8)),
  (0.0, LossSettings(cutmix_alpha=1.0)),
]


@pytest.mark.parametrize(
  'rate, settings', RANDOM, ids=['drop_path', 'mixup', 'cutmix']
)
def test_random_choices_differ_by_step_and_by_seed(
  tiny_variant, params, rate, settings
):
  module = make_module(tiny_variant).clone(drop_path_rates=(rate,) * 3)

  def losses(seed):
    # With a learning rate of 0 only the random choices can change the loss.
    results = run_steps(module, params, settings, 2, seed, rate=0.0)
    return [float(metrics['loss']) for _, metrics in results]

  first, other = losses(SEED), losses(SEED + 1)
  assert losses(SEED) == first
  batch = make_batch()
  logits, _ = forward(module, params, batch['image'])
  plain = float(cross_entropy(logits, np.eye(10)[batch['label']]))
  values = sorted([*first, *other, plain])
  assert min(np.diff(values)) > 1e-4


def test_without_random_choices_step_and_seed_change_nothing(
  tiny_variant, params
):
  module = make_module(tiny_variant)
  losses = [
    float(metrics['loss'])
    for seed in (SEED, SEED + 1)
    for _, metrics in run_steps(module, params, None, 2, seed, rate=0.0)
  ]
  assert len(set(losses)) == 1


def distance(kind, student, teacher):
  """Distillation of `(logits, features)` in NumPy, at temperature 2."""
  if kind == 'feature':
    s, t = (
      (np.float64(f) - np.mean(f, -1, keepdims=True, dtype=np.float64))
      / np.std(f, -1, keepdims=True, dtype=np.float64)
      for f in (student[1], teacher[1])
    )
    return ((s - t) ** 2).mean()
  if kind == 'hard':
    return cross_entropy(student[0], np.eye(10)[teacher[0].argmax(-1)])
  s, t = log_softmax(student[0] / 2), log_softmax(teacher[0] / 2)
  return 4 * (np.exp(t) * (t - s)).sum(-1).mean()


@pytest.mark.parametrize('kind', ['soft', 'hard', 'feature'])
def test_teacher_sees_the_mixed_images(module, params, teacher, kind):
  settings = LossSettings(
    mixup_alpha=0.8, distill=kind, distill_weight=0.3, temperature=2.0
  )
  ((_, metrics),) = run_steps(module, params, settings, teacher=teacher)
  images, targets = mixed_batch(settings)

  def outputs(module, params, images, factor=None):
    logits, taps = forward(module, params, images, factor)
    return np.asarray(logits), np.asarray(taps['features'])

  student = outputs(module, params, images, FACTOR)
  losses = [
    0.7 * cross_entropy(student[0], targets)
    + 0.3 * distance(kind, student, outputs(*teacher, seen))
    for seen in (images, make_batch()['image'])
  ]
  # The epsilon of the features' variance is relative to variances of 1.
  np.testing.assert_allclose(metrics['loss'], losses[0], rtol=5e-5)
  assert abs(losses[1] - losses[0]) > 1e-3


@pytest.mark.parametrize('classes', [10, 0])
def test_streams_and_outputs_are_distilled_without_labels(
  tiny_variant, module, params, teacher, classes
):
  """Of the blocks that belong together, and of the logits or the features."""
  module = module.clone(num_classes=classes)
  dense = teacher[0].clone(num_classes=classes)
  settings = LossSettings(
    distill='streams',
    distill_weight=0.4,
    temperature=2.0,
    stream_pairs=((1, 2),),
  )
  images = {'image': make_batch()['image']}
  ((_, metrics),) = run_steps(
    module, params, settings, teacher=(dense, teacher[1]), batch=images
  )
  pixels = images['image']
  ours, taps = forward(module, params, pixels, FACTOR, capture=True)
  theirs, own = forward(dense, teacher[1], pixels, capture=True)
  loss = losses.stream_distillation_loss(
    [taps['block01']['output']], [own['block02']['output']]
  )
  kind = 'soft' if classes else 'feature'
  outputs = [(np.asarray(each),) * 2 for each in (ours, theirs)]
  loss += distance(kind, *outputs)
  np.testing.assert_allclose(metrics['loss'], 0.4 * loss, rtol=5e-5)
  assert 'accuracy' not in metrics


def test_factor_is_not_rounded_to_bfloat16(module, params):
  def streams(factor):
    _, taps = forward(
      module.clone(dtype=jnp.bfloat16),
      params,
      make_batch()['image'],
      jnp.asarray(np.where(FACTOR < 1, factor, 1.0), jnp.float32),
      capture=True,
    )
    return np.float32(taps['block00']['after_attention'])

  # bfloat16 has 8 bits: both factors would be rounded to 3/4.
  factors = np.float32([0.75, 0.75 + 1 / 1024])
  assert len(set(factors.astype(jnp.bfloat16))) == 1
  assert np.mean(streams(factors[0]) != streams(factors[1])) > 0.05
