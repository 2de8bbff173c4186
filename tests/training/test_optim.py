"""The optimiser's masks and schedule on hand-made trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.training import optim

SETTINGS = {
  'weight_decay': 0.0,
  'b1': 0.9,
  'b2': 0.999,
  'clip_norm': 0.0,
  'layer_decay': 1.0,
  'frozen': '',
  'accumulate_steps': 1,
}

TREE = {
  'pos_embed': jnp.ones((1, 2, 2)),
  'block00': {'attn': {'qkv': {'kernel': jnp.ones((2, 6))}}},
  'block01': {'norm2': {'scale': jnp.ones(2)}},
  'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
}


def _update(settings, gradient=1.0):
  chain = optim.make_optimizer(SETTINGS | settings, lambda step: 1.0, depth=2)
  gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), TREE)
  return chain.update(gradients, chain.init(TREE), TREE)[0]


def test_decay_shrinks_kernels_only():
  mask = optim.decay_mask(TREE)
  assert mask == {
    'pos_embed': False,
    'block00': {'attn': {'qkv': {'kernel': True}}},
    'block01': {'norm2': {'scale': False}},
    'head': {'kernel': True, 'bias': False},
  }
  update = _update({'weight_decay': 0.5}, gradient=0.0)
  np.testing.assert_allclose(update['head']['kernel'], -0.5)
  assert not np.any(update['head']['bias'])


def test_layer_decay_counts_from_the_head():
  scales = optim.layer_scales(TREE, 0.5, depth=2)
  assert scales['head']['kernel'] == 1.0
  assert scales['block01']['norm2']['scale'] == 0.5
  assert scales['block00']['attn']['qkv']['kernel'] == 0.25
  assert scales['pos_embed'] == 0.125


def test_frozen_leaves_do_not_move():
  update = _update({'frozen': r'^block00/|pos_embed'})
  assert not np.any(update['block00']['attn']['qkv']['kernel'])
  assert not np.any(update['pos_embed'])
  assert np.all(update['head']['bias'] < 0)


def test_clipping_bounds_the_step_of_a_huge_gradient():
  # Adam's first step is the sign of the gradient whatever its size.
  for gradient in (1.0, 1e6):
    update = _update({'clip_norm': 1.0}, gradient)
    np.testing.assert_allclose(update['head']['bias'], -1.0, rtol=1e-3)


def test_schedule_warms_up_and_ends_at_the_final_rate():
  schedule = optim.learning_rate_schedule(1.0, 100, 10, 0.1)
  assert schedule(0) == 0.0
  np.testing.assert_allclose(schedule(10), 1.0, rtol=1e-6)
  np.testing.assert_allclose(schedule(100), 0.1, rtol=1e-6)


def test_a_warm_up_that_does_not_fit_is_refused():
  with pytest.raises(UsageError, match='does not fit'):
    optim.learning_rate_schedule(1.0, 10, 10, 0.1)


@pytest.mark.parametrize('warmup', [0, 20])
def test_poly_schedule_is_a_power_of_the_steps_left(warmup):
  schedule = optim.learning_rate_schedule(1.0, 120, warmup, 0.1, 'poly', 2.0)
  for step in (warmup, 50, 119, 120, 200):
    left = max(0.0, (120 - step) / (120 - warmup))
    np.testing.assert_allclose(schedule(step), 0.1 + 0.9 * left**2, rtol=1e-5)
  if warmup:
    np.testing.assert_allclose(schedule(5), 0.25, rtol=1e-6)
  with pytest.raises(UsageError, match='use cosine or poly'):
    optim.learning_rate_schedule(1.0, 120, warmup, 0.1, 'step')


@pytest.mark.parametrize('each', [2, 4])
def test_accumulation_leaves_the_schedule_in_steps(each):
  """The update of `each` steps has the rate of the last of them."""
  steps, seen = 12, []
  rates = optim.learning_rate_schedule(1.0, steps, 3, 0.0)
  # With b1 = b2 = 0 every update is its gradient's sign.
  settings = SETTINGS | {'accumulate_steps': each, 'b1': 0.0, 'b2': 0.0}
  chain = optim.make_optimizer(settings, rates, depth=2)
  state = chain.init(TREE)
  for step in range(steps):
    update, state = chain.update(jax.tree.map(jnp.ones_like, TREE), state, TREE)
    rate = -float(update['head']['bias'][0])
    if (step + 1) % each:
      assert rate == 0
    else:
      seen.append((step, rate))
  assert len(seen) == steps // each
  for step, rate in seen:
    # Adam's epsilon, 1e-8, beside a gradient of 1; float32.
    assert rate == pytest.approx(float(rates(step)), abs=1e-6)


@pytest.mark.parametrize(
  'pattern, why', [('blocks.0', 'no parameter has it'), ('(', 'not a regular')]
)
def test_a_pattern_that_freezes_nothing_is_refused(pattern, why):
  with pytest.raises(UsageError, match=rf'dilute\.frozen=.*{why}'):
    optim.check_frozen(pattern, TREE, 'dilute')
  optim.check_frozen('', TREE, 'dilute')
  optim.check_frozen('^block00/', TREE, 'dilute')
