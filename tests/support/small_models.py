"""Small networks with a change: a linear block, a decoder, a constant block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import lambda_vit_jax as lv
from lambda_vit_jax.models.build import init_params
from lambda_vit_jax.models.decoders import Decoder, spread_blocks
from lambda_vit_jax.models.modes import block_name

NANO = 'vit_nano_patch2_8'
CLASSES = 5
LINEAR = Decoder('linear')
UPERNET = Decoder('upernet', spread_blocks(3), channels=8)


def with_linear(model, block_index=0):
  """`model` with one block's attention replaced by an affine map."""
  modes = list(model.attention_modes)
  modes[block_index] = 'linear'
  module = model.module.clone(attention_modes=tuple(modes))
  fresh = init_params(module, 5)
  name = f'block{block_index:02d}'
  linear = jax.tree.map(lambda x: x + 0.1, fresh[name]['attn'])
  block = {'attn': linear, **{k: fresh[name][k] for k in ('norm2', 'mlp')}}
  return model.replace(module=module, params=model.params | {name: block})


@functools.cache
def make_segmenter(decoder, seed=0):
  """A network of three blocks; its numbers are as large as trained ones."""
  model = lv.create_model('vit_nano_patch2_8', seed=seed)
  model = lv.with_decoder(model, decoder, CLASSES, seed)
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape), jnp.float32),
    model.params,
  )
  return model.replace(params=params)


def shade(model, index, value):
  """The network whose block `index` adds `value` to every channel."""
  params = jax.tree.map(np.array, model.params)
  block = params[block_name(index)]
  for projection in (block['attn']['proj'], block['mlp']['fc2']):
    projection['kernel'][:] = 0.0
    projection['bias'][:] = 0.0
  block['mlp']['fc2']['bias'][:] = value
  return model.replace(params=params)
