"""Rates of the random choices of training, within binomial bounds.

Each count is checked against the interval that a binomial count leaves with
probability below 1e-6. Seeds are fixed, so results are reproducible; the bound
states how unlikely a failure after a change of the draws would be.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.data.sources.dataset import Record
from lambda_vit_jax.models import layers, surgery
from lambda_vit_jax.models.build import (
  apply_module,
  drop_path_rates,
  init_params,
  make_module,
)
from lambda_vit_jax.models.modes import MODES, block_name
from lambda_vit_jax.training import mixing

NUMBER = 4000


def assert_rate(count: int, number: int, rate: float) -> None:
  low, high = binom.ppf([5e-7, 1 - 5e-7], number, rate)
  assert low <= count <= high, f'{count} of {number}, {low:.0f} to {high:.0f}'


# --- stochastic depth -------------------------------------------------------


@pytest.mark.parametrize('rate', [0.05, 0.1, 0.5])
def test_drop_path_drops_whole_branches_at_its_rate(rate):
  x = jnp.ones((NUMBER, 2, 3))
  found = np.asarray(layers.drop_path(x, rate, jax.random.key(7)))
  dropped = (found == 0).all((1, 2))
  assert_rate(dropped.sum(), NUMBER, rate)
  # One float32 division.
  np.testing.assert_allclose(found[~dropped], 1 / (1 - rate), rtol=1e-6)


def test_rates_over_depth():
  assert drop_path_rates(0.1, 3, 'linear') == (0.0, 0.05, 0.1)
  assert drop_path_rates(0.1, 3, 'constant') == (0.1,) * 3


@pytest.fixture(scope='module')
def dropped(tiny_variant):
  """Which branch of which block is dropped, for each of 64 images.

  Returns a function of the mode of block 1, to `{(block, branch): [64] bool}`.
  Without attention (`skip`, `identity`, `absent`) block 1 has no such entry.
  """
  module = make_module(tiny_variant, drop_path_rate=0.5)
  module = module.clone(drop_path_rates=(0.5,) * module.depth)
  params = init_params(module, 0)
  images = np.random.default_rng(0).normal(size=(64, 8, 8, 1))

  @functools.cache
  def branches(mode):
    modes = ('full', mode, 'full')
    tree = params
    if not MODES[mode].has_attention:
      tree = surgery.prune_tree(params, (1,))
    _, taps = apply_module(
      module.clone(attention_modes=modes),
      tree,
      jnp.asarray(images, jnp.float32),
      dilution_factor=jnp.full(3, 0.5),
      drop_path_key=jax.random.key(3),
    )
    found = {}
    for block in range(3):
      tap = taps[block_name(block)]
      scale = {'diluted': 1.5}.get(modes[block], 1.0)
      # A dropped branch adds exact zeros to the scaled stream.
      if 'attention' in tap:
        kept = (tap['after_attention'] != scale * tap['input']).any((1, 2))
        found[block, 'attention'] = np.asarray(~kept)
      kept = (tap['output'] != tap['after_attention']).any((1, 2))
      found[block, 'mlp'] = np.asarray(~kept)
    return found

  return branches


@pytest.mark.parametrize('mode', ['diluted', 'skip', 'identity', 'absent'])
def test_leaving_a_branch_out_shifts_no_other(dropped, mode):
  full, other = dropped('full'), dropped(mode)
  assert len(full) == 6
  missing = {(1, 'attention')} if mode != 'diluted' else set()
  assert set(other) == set(full) - missing
  for branch, expected in other.items():
    np.testing.assert_array_equal(full[branch], expected, err_msg=str(branch))


def test_branches_are_dropped_independently(dropped):
  masks = np.stack(list(dropped('full').values()))
  assert len(np.unique(masks, axis=0)) == len(masks)
  assert_rate(masks.sum(), masks.size, 0.5)
  for first in range(len(masks)):
    for second in range(first):
      agree = (masks[first] == masks[second]).sum()
      assert_rate(agree, masks.shape[1], 0.5)


# --- random erasing, flips --------------------------------------------------


def test_erasing_at_its_rate():
  record = Record(image=np.zeros((8, 8), np.uint8), label=0, index=0)
  preprocessing = Preprocessing((8, 8), (0.5,), (0.5,), 1.0)
  augment = Augment(erasing=0.25)
  rng = np.random.default_rng(11)
  # Ten rectangles in a row that do not fit: in less than 1e-6 of the images.
  count = sum(
    augment.training(record, preprocessing, rng)[1] is not None
    for _ in range(NUMBER)
  )
  assert_rate(count, NUMBER, 0.25)


def test_flips_at_their_rate():
  pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
  record = Record(image=pixels, label=0, index=0)
  preprocessing = Preprocessing((8, 8), (0.5,), (0.5,), 1.0)
  augment = Augment(flip=0.5)
  rng = np.random.default_rng(12)
  count = sum(
    augment.training(record, preprocessing, rng)[0][0, 0, 0] == 7
    for _ in range(NUMBER)
  )
  assert_rate(count, NUMBER, 0.5)


# --- mixup and cutmix -------------------------------------------------------


@pytest.fixture(scope='module')
def shares():
  """Weight of the first image per pixel, `[draws, height, width]`."""
  images = jnp.zeros((2, 16, 16, 1)).at[0].set(1.0)
  targets = jnp.eye(2)
  keys = jax.random.split(jax.random.key(13), NUMBER)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def draw(mixup, cutmix, prob, switch):
    mix = functools.partial(
      mixing.mix,
      mixup_alpha=mixup,
      cutmix_alpha=cutmix,
      prob=prob,
      switch_prob=switch,
    )
    return jax.vmap(lambda key: mix(images, targets, key)[0][0, ..., 0])(keys)

  return lambda *chances: np.asarray(draw(*chances))


@pytest.mark.parametrize('prob', [0.3, 1.0])
def test_batches_are_mixed_at_their_rate(shares, prob):
  # Beta(0.8, 0.8) draws exactly 1 only by rounding to float32, a few times in
  # a million.
  mixed = (shares(0.8, 0.0, prob, 0.5) < 1).all((1, 2))
  assert_rate(mixed.sum(), NUMBER, prob)


@pytest.mark.parametrize('switch', [0.2, 0.5])
def test_cutmix_is_chosen_at_its_rate(shares, switch):
  found = shares(0.8, 1.0, 1.0, switch)
  # Cutmix weights are 0 or 1 (all 1 for an empty box); mixup's are between.
  cut = np.isin(found, (0.0, 1.0)).all((1, 2))
  assert_rate(cut.sum(), NUMBER, switch)
