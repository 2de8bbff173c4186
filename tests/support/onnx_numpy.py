"""ONNX graphs run by a few lines of numpy."""

import math

import numpy as np

from lambda_vit_jax.exporters.onnx.graph import Graph


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
  'Split': np.split,
  'Sub': np.subtract,
  'Squeeze': lambda x, axes: np.squeeze(x, tuple(axes)),
  'Tanh': np.tanh,
  'TopK': top_k,
  'Transpose': lambda x, perm: np.transpose(x, perm),
  'Unsqueeze': lambda x, axes: np.expand_dims(x, tuple(axes)),
}


def run_graph(graph: Graph, images: np.ndarray) -> np.ndarray:
  values = dict(graph.arrays) | {'images': images}
  for node in graph.nodes:
    attributes = dict(node.attributes)
    if node.operator == 'Split':
      attributes['indices_or_sections'] = len(node.outputs)
    found = OPERATORS[node.operator](
      *(values[name] for name in node.inputs), **attributes
    )
    found = [found] if len(node.outputs) == 1 else found
    for name, value in zip(node.outputs, found, strict=True):
      # Each name is written once.
      assert name not in values
      values[name] = value
  return values['logits']
