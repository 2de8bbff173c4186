"""Operations and buffers of compiled programs; nothing is timed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lambda_vit_jax.models import modes
from lambda_vit_jax.models.build import abstract_params, forward, make_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import VARIANTS

# DeiT-S at its own size, with blocks for every case: attention kept, one
# removed block, two in a row.
SMALL = dataclasses.replace(VARIANTS['deit_small_patch16_224'], depth=5)
REMOVED = (0, 2, 3)
SMALL_TOKENS = 197
BATCH = 8


def compiled(removed=(), mode='identity', variant=SMALL, **options):
  module = make_module(
    variant,
    attention_modes=modes.modes_without(
      removed, ('full',) * variant.depth, mode
    ),
    **options,
  )
  images = jax.ShapeDtypeStruct(
    (BATCH, *module.image_size, module.in_chans), jnp.float32
  )
  params = abstract_params(module)
  return module, forward.lower(module, params, images).compile()


@pytest.fixture(scope='module')
def dense():
  return compiled()


@pytest.fixture(scope='module', params=['identity', 'absent'])
def pruned(request):
  return compiled(REMOVED, request.param)


def test_pruning_never_costs_memory(dense, pruned):
  less = pruned[1].memory_analysis().temp_size_in_bytes
  more = dense[1].memory_analysis().temp_size_in_bytes
  assert less <= more


def test_pruning_saves_exactly_the_removed_weights(dense, pruned):
  def argument_bytes(pair):
    return pair[1].memory_analysis().argument_size_in_bytes

  width = SMALL.embed_dim
  assert argument_bytes(dense) - argument_bytes(pruned) == (
    4 * len(REMOVED) * (4 * width**2 + 6 * width)
  )


def test_only_logits_and_features_are_returned(dense):
  # An unused intermediate among the results would be written to memory.
  assert dense[1].memory_analysis().output_size_in_bytes == (
    4 * BATCH * (SMALL.num_classes + SMALL.embed_dim)
    # XLA's tuple of two pointers.
    + 2 * 8
  )


def test_flops_are_those_of_the_counted_macs(dense, pruned):
  for module, program in (dense, pruned):
    model = Model(module, {}, 'small', None)
    counted = 2 * BATCH * model.macs(executed=True)
    # Norms, softmax and GELU are not counted: 4% on DeiT-S.
    assert 1.0 <= program.cost_analysis()['flops'] / counted < 1.06
