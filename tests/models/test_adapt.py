"""Another head or decoder: what of the network it keeps."""

import jax
import numpy as np
import pytest

from lambda_vit_jax.models import adapt
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.edits import quantize
from tests.support.search_models import make_model

DECODER = Decoder('linear')


@pytest.mark.parametrize(
  'pooling, then', [('token', 'token'), ('avg', 'avg'), ('map', 'avg')]
)
def test_a_decoder_takes_the_place_of_attention_pooling_alone(
  tiny_variant, pooling, then
):
  """Of other networks the pooling says which norm is at the end."""
  model = make_model(tiny_variant, depth=2, pooling=pooling)
  assert ('attn_pool' in model.params) == (pooling == 'map')
  found = adapt.with_decoder(model, DECODER, 3)
  assert found.module.pooling == then
  assert 'attn_pool' not in found.params
  images = np.zeros((1, 8, 8, 1), np.float32)
  assert found(images).shape == (1, 8, 8, 3)


@pytest.mark.parametrize('int8', [False, True])
def test_a_new_head_is_stored_as_the_network_is(tiny_variant, int8):
  model = make_model(tiny_variant, depth=2)
  model = quantize(model) if int8 else model
  head = adapt.with_num_classes(model, 4).params['head']
  dtypes = {np.dtype(leaf.dtype) for leaf in jax.tree.leaves(head)}
  assert (np.dtype(np.int8) in dtypes) == int8
