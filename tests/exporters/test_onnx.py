"""The ONNX graph, run by a few lines of numpy: what timm computes."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints.load import load_pretrained
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.exporters.onnx import graph as graph_lib
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models.build import init_params, make_module
from lambda_vit_jax.models.edits import fold, merge_tokens
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.variants import VARIANTS
from tests.checkpoints.test_golden_parity import GOLDEN, assert_close
from tests.exporters.test_export import with_linear
from tests.support.family_members import (
  MEMBERS,
  synthetic_arrays,
  synthetic_images,
)


def layer_norm(x, scale, bias, axis, epsilon):
  x = x - x.mean(axis=axis, keepdims=True)
  variance = (x * x).mean(axis=axis, keepdims=True)
  return x / np.sqrt(variance + epsilon) * scale + bias


def softmax(x, axis):
  weights = np.exp(x - x.max(axis=axis, keepdims=True))
  return weights / weights.sum(axis=axis, keepdims=True)


def convolve(x, kernel, bias=None, *, pads):
  """Channels first: a product for each place of the kernel."""
  top, left, bottom, right = pads
  x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
  windows = np.lib.stride_tricks.sliding_window_view(
    x, kernel.shape[2:], axis=(2, 3)
  )
  found = np.einsum('bchwij,ocij->bohw', windows, kernel, optimize=True)
  return found if bias is None else found + bias[:, None, None]


def top_k(x, k, axis, largest, **_):
  order = np.argsort(-x if largest else x, axis=axis, kind='stable')
  order = np.take(order, np.arange(k[0]), axis)
  return np.take_along_axis(x, order, axis), order


# ONNX's definitions, for the forms that our graphs use.
OPERATORS = {
  'Add': np.add,
  'ArgMax': lambda x, axis, keepdims: x.argmax(axis),
  'Cast': lambda x, to: x.astype({1: np.float32}[to]),
  'Conv': convolve,
  'Concat': lambda *xs, axis: np.concatenate(xs, axis),
  'Div': np.divide,
  'Equal': np.equal,
  'Erf': np.vectorize(math.erf, otypes=[np.float32]),
  'Expand': np.broadcast_to,
  'Gather': lambda x, index, axis: np.take(x, index, axis),
  'GatherElements': np.take_along_axis,
  'GatherND': lambda x, places, batch_dims: np.take_along_axis(x, places, 1),
  'Identity': lambda x: x,
  'LayerNormalization': layer_norm,
  'Log': np.log,
  'MatMul': np.matmul,
  'Max': np.maximum,
  'Mul': np.multiply,
  'ReduceL2': lambda x, axes, keepdims: np.sqrt(
    np.square(x).sum(axis=tuple(axes), keepdims=bool(keepdims))
  ),
  'ReduceMax': lambda x, axes, keepdims: x.max(axis=tuple(axes)),
  'ReduceMean': lambda x, axes, keepdims: x.mean(
    axis=tuple(axes), keepdims=bool(keepdims)
  ),
  'ReduceSum': lambda x, axes, keepdims: x.sum(
    axis=tuple(axes), keepdims=bool(keepdims)
  ),
  'Relu': lambda x: np.maximum(x, 0),
  'Reshape': np.reshape,
  'Shape': lambda x: np.asarray(x.shape, np.int64),
  'Sigmoid': lambda x: 1 / (1 + np.exp(-x)),
  'Slice': lambda x, start, stop, axis, step=(1,): np.take(
    x, np.arange(start[0], min(stop[0], x.shape[axis[0]]), step[0]), axis[0]
  ),
  'Softmax': softmax,
  'Split': lambda x, axis: np.split(x, 3, axis),
  'Sub': np.subtract,
  'Squeeze': lambda x, axes: np.squeeze(x, tuple(axes)),
  'TopK': top_k,
  'Transpose': lambda x, perm: np.transpose(x, perm),
  'Unsqueeze': lambda x, axes: np.expand_dims(x, tuple(axes)),
}


def run(graph: graph_lib.Graph, images: np.ndarray) -> np.ndarray:
  values = dict(graph.arrays) | {'images': images}
  for node in graph.nodes:
    found = OPERATORS[node.operator](
      *(values[name] for name in node.inputs), **node.attributes
    )
    found = [found] if len(node.outputs) == 1 else found
    for name, value in zip(node.outputs, found, strict=True):
      # Each name is written once.
      assert name not in values
      values[name] = value
  return values['logits']


@pytest.mark.parametrize('member', MEMBERS, ids=lambda member: member.family)
def test_graph_of_every_family_gives_timms_logits(
  member, tmp_path, monkeypatch
):
  monkeypatch.setitem(VARIANTS, member.name, member.variant)
  with np.load(GOLDEN / f'{member.name}.npz') as file:
    golden = dict(file)
  arrays = synthetic_arrays(json.loads(str(golden['shapes'])))
  path = tmp_path / 'model.safetensors'
  save_file(arrays, path)
  for size in member.image_sizes:
    model = load_pretrained(path, variant=member.name, image_size=size)
    logits = run(vit.build(model), synthetic_images(size))
    assert_close(logits, golden[f'{size}/logits'])


@pytest.fixture(scope='module')
def pruned():
  return create_model('vit_nano_patch2_8', seed=3, removed_layers=(1,))


@pytest.mark.parametrize('options', [{}, {'norm_before_pool': False}])
def test_average_pooling(options, images):
  model = create_model('vit_nano_patch2_8', pooling='avg', **options)
  assert_close(run(vit.build(model), images), model(images))


def test_removed_and_linear_blocks(pruned, images):
  folded = fold(with_linear(pruned))
  graph = vit.build(folded)
  assert_close(run(graph, images), with_linear(pruned)(images))
  # A removed attention leaves nothing behind.
  operators = [node.operator for node in graph.nodes]
  assert operators.count('Softmax') == 1
  assert not [name for name in graph.arrays if 'block01/attn' in name]
  assert not [name for name in graph.arrays if 'block01/norm1' in name]


def test_unfolded_models_are_refused(pruned):
  with pytest.raises(ModelError, match='block 1: fold the model'):
    vit.build(pruned)


def test_half_precision_is_stored_where_it_is_exact(pruned, images):
  folded = fold(pruned)
  rounded = folded.replace(
    params=jax.tree.map(
      lambda x: np.asarray(x, np.float16).astype(np.float32), folded.params
    )
  )
  graph = vit.build(rounded, 'float16')
  kernel = graph.arrays['block00/mlp/fc1/kernel.stored']
  assert kernel.dtype == np.float16
  floats = vit.build(rounded)
  np.testing.assert_array_equal(run(graph, images), run(floats, images))
  # What float16 would change stays as it is.
  graph = vit.build(folded, 'float16')
  assert graph.arrays['block00/mlp/fc1/kernel'].dtype == np.float32


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'pooling': 'avg', 'num_registers': 2, 'layer_scale': 0.5},
  ],
)
def test_merged_tokens(tiny_variant, images, fields):
  variant = dataclasses.replace(tiny_variant, **fields)
  module = make_module(
    variant,
    attention_modes=('full', 'linear', 'full'),
    linear_inputs=('token', 'mean', 'class_map'),
  )
  params = init_params(module, 0)
  # The maps start as zeros.
  params['block01']['attn'] = jax.tree.map(
    lambda leaf: leaf + 0.1, params['block01']['attn']
  )
  model = Model(module, params, 'tiny', variant.preprocessing((8, 8)))
  # Half of them, and then all of the first set but one.
  merged = merge_tokens(model, [8, 0, 3])
  logits = run(vit.build(merged), images)
  # Float32 sums of numbers around 1, in another order.
  np.testing.assert_allclose(logits, merged(images), rtol=1e-4, atol=1e-5)
  assert np.abs(logits - model(images)).max() > 1e-4
