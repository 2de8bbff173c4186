"""The optimizer's masks, schedules and updates on small trees, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
  'cls_token': jnp.ones((1, 1, 2)),
  'dist_token': jnp.ones((1, 1, 2)),
  'reg_token': jnp.ones((1, 4, 2)),
  'pos_embed': jnp.ones((1, 2, 2)),
  'attn_pool': {'latent': jnp.ones((1, 1, 2))},
  'norm_pre': {'scale': jnp.ones(2)},
  'block00': {
    'attn': {
      'qkv': {'kernel': jnp.ones((2, 6))},
      'relative_position_bias_table': jnp.ones((9, 1)),
      # An intercept for each position.
      'positions': {'bias': jnp.ones((5, 2))},
    }
  },
  'block01': {'norm2': {'scale': jnp.ones(2)}},
  'norm': {'scale': jnp.ones(2)},
  'head': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
}


def _update(settings, gradient=1.0):
  chain = optim.make_optimizer(SETTINGS | settings, lambda step: 1.0, depth=2)
  gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), TREE)
  return chain.update(gradients, chain.init(TREE), TREE)[0]


def test_decay_shrinks_kernels_only():
  mask = optim.decay_mask(TREE)
  assert mask == {
    'cls_token': False,
    'dist_token': False,
    'reg_token': False,
    'pos_embed': False,
    'attn_pool': {'latent': False},
    'norm_pre': {'scale': False},
    'block00': {
      'attn': {
        'qkv': {'kernel': True},
        'relative_position_bias_table': False,
        'positions': {'bias': False},
      }
    },
    'block01': {'norm2': {'scale': False}},
    'norm': {'scale': False},
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
  assert scales['norm']['scale'] == 1.0
  # It reads the last block, as the head does.
  assert scales['attn_pool']['latent'] == 1.0
  for embedding in ('pos_embed', 'cls_token', 'dist_token', 'reg_token'):
    assert scales[embedding] == 0.125
  # Before the blocks, although its name begins like the final norm's.
  assert scales['norm_pre']['scale'] == 0.125


def test_frozen_leaves_do_not_move():
  update = _update({'frozen': r'^block00/|pos_embed'})
  assert not np.any(update['block00']['attn']['qkv']['kernel'])
  assert not np.any(update['pos_embed'])
  assert np.all(update['head']['bias'] < 0)


# Two gradients, unlike in sign and size: Adam's first step has the size of the
# rate whatever the gradient is, and its moments differ from the second step on.
GRADIENTS = (np.float32([3.0, -0.5, 0.02]), np.float32([-0.1, 0.4, 0.3]))


def numpy_adamw(params, settings, rates, scale=1.0):
  """AdamW by its definition, in float64: decoupled decay, bias correction."""
  params, m, v = np.float64(params), 0.0, 0.0
  b1, b2 = settings['b1'], settings['b2']
  for count, (gradient, rate) in enumerate(
    zip(GRADIENTS, rates, strict=True), start=1
  ):
    g = np.float64(gradient)
    if settings['clip_norm']:
      g = g * min(1.0, settings['clip_norm'] / np.linalg.norm(g))
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    step = (m / (1 - b1**count)) / (np.sqrt(v / (1 - b2**count)) + 1e-8)
    params = params - scale * rate * (step + settings['weight_decay'] * params)
  return params


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'b1': 0.5, 'b2': 0.7},
    {'weight_decay': 0.3},
    # Clips the first gradient, of norm 3.04, and not the second, of 0.51.
    {'clip_norm': 1.0},
    {'clip_norm': 0.2, 'weight_decay': 0.1, 'b1': 0.8},
    {'layer_decay': 0.5, 'weight_decay': 0.3},
  ],
  ids=str,
)
def test_two_steps_are_those_of_adamw(changes):
  settings = SETTINGS | changes
  rates = (0.1, 0.05)
  chain = optim.make_optimizer(
    settings, lambda count: jnp.where(count == 0, *rates), depth=2
  )
  start = np.float32([[0.5, -1.0, 2.0]])
  params = {'block00': {'kernel': jnp.asarray(start)}}
  state = chain.init(params)
  for gradient in GRADIENTS:
    gradients = {'block00': {'kernel': jnp.asarray(gradient[None])}}
    updates, state = chain.update(gradients, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  # Block 0 of 2 is layer 1 of 3.
  scale = settings['layer_decay'] ** 2
  np.testing.assert_allclose(
    params['block00']['kernel'],
    numpy_adamw(start, settings, rates, scale),
    rtol=1e-5,
  )


def test_clipping_bounds_the_norm_over_all_leaves():
  # With b1 = b2 = 0, Adam divides by the size of the last gradient: the norm
  # that was clipped shows in the ratio of the second moments.
  chain = optim.make_optimizer(
    SETTINGS | {'clip_norm': 1.0}, lambda count: 1.0, depth=2
  )
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
  gradients = {'a': jnp.float32([2.0, 3.0]), 'b': jnp.float32([6.0])}
  _, state = chain.update(gradients, chain.init(params), params)
  moments = optax.tree.get(state, 'mu')
  # The norm of (2, 3, 6) is 7.
  np.testing.assert_allclose(moments['a'], [0.2 / 7, 0.3 / 7], rtol=1e-6)
  np.testing.assert_allclose(moments['b'], [0.6 / 7], rtol=1e-6)


def test_schedule_warms_up_and_ends_at_the_final_rate():
  schedule = optim.learning_rate_schedule(1.0, 100, 10, 0.1)
  assert schedule(0) == 0.0
  np.testing.assert_allclose(schedule(10), 1.0, rtol=1e-6)
  # A quarter of the way, where a straight line would be at 0.775.
  cosine = 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2
  np.testing.assert_allclose(schedule(10 + 90 / 4), cosine, rtol=1e-5)
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
    optim.check_frozen(pattern, 'dilute', TREE)
  optim.check_frozen('', 'dilute', TREE)
  optim.check_frozen('^block00/', 'dilute', TREE)


def test_a_pattern_that_freezes_everything_is_refused():
  """Such as a typo in the name of the one layer that should train."""
  with pytest.raises(UsageError, match=r'every parameter has it in its path'):
    optim.check_frozen('^(?!haed)', 'pretrain', TREE)
