"""Networks and state dicts in memory, without PyTorch (with it: tests/parity).

The stand-ins have the attributes that PyTorch and timm have, and no others.
"""

import types

import ml_dtypes
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import CheckpointError
from tests.support.trees import assert_same

NANO = 'vit_nano_patch2_8'


class Tensor:
  """Of PyTorch: `numpy` fails for bfloat16 and where gradients are required."""

  def __init__(self, array, dtype='torch.float32', plain=False):
    self.array, self.dtype, self.plain = array, dtype, plain
    self.shape = array.shape

  def detach(self):
    return Tensor(self.array, self.dtype, plain=True)

  def cpu(self):
    return self

  def float(self):
    return Tensor(self.array.astype(np.float32), plain=self.plain)

  def numpy(self):
    if not self.plain:
      raise RuntimeError("Can't call numpy() on Tensor that requires grad")
    if 'bfloat16' in self.dtype:
      raise TypeError('Got unsupported ScalarType BFloat16')
    return self.array


@pytest.fixture(scope='module')
def nano():
  return lv.create_model(NANO, seed=3)


def state_of(model):
  return {k: Tensor(v) for k, v in convert.encode(model.params).items()}


class VisionTransformer:
  """The attributes of timm's class that are read."""

  def __init__(self, model, state):
    self.state = state
    eps, module = types.SimpleNamespace(eps=1e-6), model.module
    self.patch_embed = types.SimpleNamespace(patch_size=(2, 2), img_size=(8, 8))
    self.embed_dim, self.no_embed_class = module.embed_dim, False
    self.global_pool, self.norm, self.fc_norm = 'token', eps, object()
    self.blocks = [
      Block(
        norm1=eps,
        norm2=eps,
        attn=types.SimpleNamespace(num_heads=module.num_heads),
        mlp=types.SimpleNamespace(act=GELU(approximate='none')),
      )
      for _ in range(module.depth)
    ]
    self.pretrained_cfg = {
      'architecture': NANO,
      'tag': 'mine',
      'mean': (0.25,),
      'std': (0.75,),
      'crop_pct': 0.9,
      'interpolation': 'bilinear',
    }

  def state_dict(self):
    return self.state


class Block(types.SimpleNamespace):
  """Named as timm's."""


class GELU(types.SimpleNamespace):
  """Named as PyTorch's."""


@pytest.fixture
def network(nano):
  return VisionTransformer(nano, state_of(nano))


def test_a_network_is_read_from_the_object(network, nano):
  model = load_pretrained(network)
  assert model.module == nano.module
  assert_same(model.params, nano.params)
  assert model.preprocessing.mean == (0.25,)
  assert model.preprocessing.interpolation == 'bilinear'


def test_heads_pooling_and_epsilons_are_those_of_the_object(network):
  for block in network.blocks:
    block.attn.num_heads = 4
    block.norm1 = block.norm2 = network.norm = types.SimpleNamespace(eps=1e-5)
    block.mlp.act = type('QuickGELU', (), {})()
  network.global_pool = 'avg'
  module = load_pretrained(network).module
  assert module.num_heads == 4
  assert module.norm_eps == (1e-5,) * 4
  assert module.activation == 'quick_gelu'
  # Without `fc_norm` the mean is of normed patches.
  assert (module.pooling, module.norm_before_pool) == ('avg', True)


def change_epsilon(network):
  network.blocks[1].norm2 = types.SimpleNamespace(eps=1e-3)


def change_block(network):
  network.blocks[1] = types.SimpleNamespace(**vars(network.blocks[1]))


def change_gelu(network):
  network.blocks[1].mlp = types.SimpleNamespace(act=GELU(approximate='tanh'))


@pytest.mark.parametrize(
  'change, words',
  [
    (change_epsilon, 'epsilon of the norms is 0.001, 1e-06'),
    (change_block, 'block is SimpleNamespace'),
    (change_gelu, 'approximation of GELU is tanh'),
    (lambda n: setattr(n, 'pool_include_prefix', True), 'pool_include_prefix'),
    (lambda n: setattr(n, 'global_pool', 'max'), "is 'max', but must be one"),
    (lambda n: delattr(n, 'pretrained_cfg'), 'not as timm makes it'),
    (lambda n: n.pretrained_cfg.pop('architecture'), 'not as timm makes it'),
    (lambda n: n.state.pop('norm.weight'), 'missing: norm.weight'),
  ],
)
def test_what_computes_something_else_is_refused(network, change, words):
  change(network)
  with pytest.raises(CheckpointError, match=words) as error:
    load_pretrained(network)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('where', [None, 3, ['a'], lv.create_model])
def test_what_is_no_path_is_one_line(where):
  with pytest.raises(CheckpointError, match='is no path, no network'):
    load_pretrained(where)


def test_other_modules_are_refused():
  module = types.SimpleNamespace(state_dict=dict)
  with pytest.raises(CheckpointError, match='not a network of timm'):
    load_pretrained(module)


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'model': s}])
@pytest.mark.parametrize(
  'convert_one',
  [
    Tensor,
    lambda array: array,
    lambda array: Tensor(array.astype(ml_dtypes.bfloat16), 'torch.bfloat16'),
  ],
  ids=['requires_grad', 'arrays', 'bfloat16'],
)
def test_state_dicts(nano, convert_one, wrap):
  arrays = convert.encode(nano.params)
  state = wrap({name: convert_one(array) for name, array in arrays.items()})
  model = load_pretrained(state, variant=NANO, num_classes=0)
  wanted = arrays['blocks.1.attn.qkv.weight'].T
  found = model.params['block01']['attn']['qkv']['kernel']
  # bfloat16 has eight bits.
  np.testing.assert_allclose(found, wanted, rtol=2**-8)
  assert 'head' not in model.params


@pytest.mark.parametrize(
  'state, words',
  [
    ({'x': 3}, 'no state dict of tensors'),
    ({'a': {'x': np.zeros(3)}}, 'its 1 arrays fit no variant'),
  ],
)
def test_mappings_that_are_no_state_dict(state, words):
  with pytest.raises(CheckpointError, match=words):
    load_pretrained(state)


def test_a_tensor_that_numpy_cannot_hold_is_named(nano):
  state = state_of(nano)
  state['head.bias'] = Tensor(np.zeros(10, np.int8), 'torch.qint8')
  state['head.bias'].detach = lambda: state['head.bias']
  with pytest.raises(CheckpointError, match=r'head\.bias is no plain array'):
    load_pretrained(state, variant=NANO)


@pytest.mark.parametrize('dtype', ['torch.float8_e4m3fn', 'torch.int8'])
def test_numbers_without_their_scales_are_refused(nano, dtype):
  state = state_of(nano)
  wide = state['head.weight']
  narrow = np.zeros(wide.shape, np.int8)
  state['head.weight'] = Tensor(narrow, dtype)
  with pytest.raises(CheckpointError, match=r'head\.weight is .*(int8|float8)'):
    load_pretrained(state, variant=NANO)
