"""A folded model as an ONNX graph, written out operation by operation.

A tracer would leave hundreds of nodes that compute shapes; this is the graph
that a person would draw, some twenty nodes a block, which runtimes recognise
and fuse. It is a second description of `models.vit`: the export compares its
logits with the model's each time it writes one.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lambda_vit_jax import convert, onnx_merging
from lambda_vit_jax.errors import LambdaVitError, ModelError
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.quantization import SCALE
from lambda_vit_jax.surgery import block_name

OPSET = 17
"""The oldest operator set with LayerNormalization."""

_SQRT_HALF = 0.5**0.5
_QUICK = 1.702

# A message of protocol buffers ends at two gibibytes; the graph is small.
_LARGEST = 2_000_000_000


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation: ONNX's name for it, its inputs, outputs and attributes."""

  operator: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: dict[str, Any]


@dataclasses.dataclass
class Graph:
  """Nodes in order, and the arrays that they use.

  The input is `images` `[batch, height, width, channels]` float32, the output
  `logits` `[batch, num_classes]`.
  """

  image_shape: tuple[int, int, int]
  num_outputs: int
  nodes: list[Node] = dataclasses.field(default_factory=list)
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def add(
    self, operator: str, *inputs: Any, count: int = 1, **attributes: Any
  ) -> Any:
    """Appends a node; arrays among the inputs become constants.

    Returns:
      The name of its output, a tuple of `count` names if more than one.
    """
    index = len(self.nodes)
    names = tuple(
      x
      if isinstance(x, str)
      else self._constant(np.asarray(x), f'c{index}_{i}')
      for i, x in enumerate(inputs)
    )
    outputs = tuple(f'{operator.lower()}_{index}_{i}' for i in range(count))
    self.nodes.append(Node(operator, names, outputs, attributes))
    return outputs[0] if count == 1 else outputs

  def parameter(self, array: np.ndarray, name: str, dtype: np.dtype) -> str:
    """A named array, stored in `dtype` where that loses nothing."""
    array = np.asarray(array, np.float32)
    stored = array.astype(dtype)
    if dtype == np.float32 or (stored.astype(np.float32) != array).any():
      return self._constant(array, name)
    self.arrays[f'{name}.stored'] = stored
    self.nodes.append(Node('Cast', (f'{name}.stored',), (name,), {'to': 1}))
    return name

  def quantized(
    self, integers: np.ndarray, scale: np.ndarray, name: str
  ) -> str:
    """An int8 array `[inputs, outputs]`, times a scale for each output.

    Not as DequantizeLinear: onnxruntime takes one before a product for leave to
    quantise the other factor as well.
    """
    stored = self._constant(np.asarray(integers), f'{name}.stored')
    scales = self._constant(np.asarray(scale, np.float32), f'{name}.scale')
    self.nodes.append(Node('Cast', (stored,), (f'{name}.cast',), {'to': 1}))
    self.nodes.append(Node('Mul', (f'{name}.cast', scales), (name,), {}))
    return name

  def _constant(self, array: np.ndarray, name: str) -> str:
    self.arrays[name] = array
    return name


class _Writer:
  """Adds a model to a graph, part after part."""

  def __init__(self, model: Model, dtype: np.dtype):
    module = model.module
    self.module = module
    self.params = convert.flatten(model.params)
    self.dtype = dtype
    self.graph = Graph(
      (*module.image_size, module.in_chans),
      module.num_classes or module.embed_dim,
    )
    self.add = self.graph.add
    # Tokens of the stream, and how many patches each of them stands for.
    self.tokens = module.num_tokens
    self.sizes: str | None = None
    self.batch = ''

  def parameter(self, path: str) -> str:
    return self.graph.parameter(self.params[path], path, self.dtype)

  def kernel(self, path: str) -> str:
    """A matrix, from its integers where it is quantised."""
    name = f'{path}/kernel'
    scale = self.params.get(f'{path}/{SCALE}')
    if scale is None:
      return self.parameter(name)
    return self.graph.quantized(self.params[name], scale, name)

  def dense(self, x: str, path: str) -> str:
    """`x·kernel + bias`, the bias where there is one."""
    x = self.add('MatMul', x, self.kernel(path))
    if f'{path}/bias' not in self.params:
      return x
    return self.add('Add', x, self.parameter(f'{path}/bias'))

  def norm(self, x: str, path: str, epsilon: float) -> str:
    width = self.module.embed_dim
    affine = f'{path}/scale' in self.params
    scale = self.parameter(f'{path}/scale') if affine else np.ones(width, 'f4')
    bias = self.parameter(f'{path}/bias') if affine else np.zeros(width, 'f4')
    return self.add(
      'LayerNormalization', x, scale, bias, axis=-1, epsilon=epsilon
    )

  def scaled(self, x: str, path: str) -> str:
    """LayerScale, where the model has it."""
    if f'{path}/gamma' not in self.params:
      return x
    return self.add('Mul', x, self.parameter(f'{path}/gamma'))

  def reshape(self, x: str, shape: Sequence[int]) -> str:
    return self.add('Reshape', x, np.asarray(shape, np.int64))

  def leading(self, x: str, count: int | None, axis: int) -> str:
    """The first `count` tokens, all for None."""
    return x if count is None else self.slice(x, 0, count, axis)

  def slice(self, x: str, start: int, stop: int, axis: int) -> str:
    bounds = [np.asarray([n], np.int64) for n in (start, stop, axis)]
    return self.add('Slice', x, *bounds)

  def embed(self, images: str) -> str:
    """Patches, tokens in front, positions."""
    module, size = self.module, self.module.patch_size
    rows, columns = module.grid_size
    x = self.reshape(images, (-1, rows, size, columns, size, module.in_chans))
    x = self.add('Transpose', x, perm=[0, 1, 3, 2, 4, 5])
    inputs = size * size * module.in_chans
    x = self.reshape(x, (-1, rows * columns, inputs))
    self.params['patch_embed/kernel'] = np.reshape(
      self.params['patch_embed/kernel'], (inputs, -1)
    )
    x = self.dense(x, 'patch_embed')
    prefix = np.concatenate(
      [
        self.params[name]
        for name in ('cls_token', 'dist_token', 'reg_token')
        if name in self.params
      ],
      axis=1,
    )
    count = prefix.shape[1]
    positions = np.asarray(self.params['pos_embed'])
    if module.position_on_class:
      prefix = prefix + positions[:, :count]
      positions = positions[:, count:]
    x = self.add(
      'Add', x, self.graph.parameter(positions, 'positions', self.dtype)
    )
    self.batch = self.slice(self.add('Shape', images), 0, 1, 0)
    shape = self.add(
      'Concat',
      self.batch,
      np.asarray([count, module.embed_dim], np.int64),
      axis=0,
    )
    prefix = self.add(
      'Expand', self.graph.parameter(prefix, 'prefix', self.dtype), shape
    )
    x = self.add('Concat', prefix, x, axis=1)
    if module.pre_norm:
      x = self.norm(x, 'norm_pre', module.pre_norm_eps)
    return x

  def attention(
    self, x: str, path: str, queries: int | None
  ) -> tuple[str, str]:
    """What the attention gives, and its keys."""
    module = self.module
    width, heads = module.embed_dim, module.num_heads
    head_dim = width // heads
    x = self.dense(x, f'{path}/qkv')
    x = self.reshape(x, (-1, self.tokens, 3, heads, head_dim))
    x = self.add('Transpose', x, perm=[2, 0, 3, 1, 4])
    query, key, value = (
      self.add('Squeeze', part, np.asarray([0], np.int64))
      for part in self.add('Split', x, count=3, axis=0)
    )
    query = self.leading(query, queries, 2)
    query = self.add('Mul', query, np.float32(head_dim**-0.5))
    scores = self.add(
      'MatMul', query, self.add('Transpose', key, perm=[0, 1, 3, 2])
    )
    if self.sizes is not None:
      logs = self.add('Log', self.sizes)
      logs = self.add('Unsqueeze', logs, np.asarray([1, 2], np.int64))
      scores = self.add('Add', scores, logs)
    weights = self.add('Softmax', scores, axis=-1)
    x = self.add(
      'Transpose', self.add('MatMul', weights, value), perm=[0, 2, 1, 3]
    )
    rows = self.tokens if queries is None else queries
    x = self.dense(self.reshape(x, (-1, rows, width)), f'{path}/proj')
    return x, key

  def mean(self, x: str, keepdims: int) -> str:
    """Over all tokens, or the patches, each as often as its size says."""
    if self.sizes is None:
      return self.add('ReduceMean', x, axes=[1], keepdims=keepdims)
    sizes = self.sizes
    if not keepdims:
      sizes = self.slice(sizes, self.module.num_prefix_tokens, self.tokens, 1)
    sizes = self.add('Unsqueeze', sizes, np.asarray([2], np.int64))
    axes = np.asarray([1], np.int64)
    total = self.add(
      'ReduceSum', self.add('Mul', x, sizes), axes, keepdims=keepdims
    )
    return self.add(
      'Div', total, self.add('ReduceSum', sizes, axes, keepdims=keepdims)
    )

  def affine_map(self, x: str, path: str, rows: int) -> str:
    """Mode `linear` on the first rows, see `LinearAttention`."""
    inputs = self.module.linear_inputs
    mean = None
    if 'mean' in inputs:
      mean = self.mean(x, 1)

    def mapped(y: str, prefix: str) -> str:
      y = self.dense(y, f'{path}/{prefix}linear')
      if mean is None:
        return y
      return self.add('Add', y, self.dense(mean, f'{path}/{prefix}mean'))

    if 'class_map' not in inputs:
      whole = rows == self.tokens or mean is None
      return mapped(x if whole else self.leading(x, rows, 1), '')
    first = mapped(self.slice(x, 0, 1, 1), 'class_')
    if rows == 1:
      return first
    return self.add(
      'Concat', first, mapped(self.slice(x, 1, rows, 1), ''), axis=1
    )

  def activation(self, x: str) -> str:
    if self.module.activation == 'quick_gelu':
      gate = self.add('Sigmoid', self.add('Mul', x, np.float32(_QUICK)))
      return self.add('Mul', x, gate)
    gate = self.add('Erf', self.add('Mul', x, np.float32(_SQRT_HALF)))
    gate = self.add('Add', gate, np.float32(1.0))
    return self.add('Mul', self.add('Mul', x, gate), np.float32(0.5))

  def block(self, x: str, block_index: int) -> str:
    module, name = self.module, block_name(block_index)
    mode = module.attention_modes[block_index]
    epsilon = module.norm_eps[block_index]
    # Behind the last attention only the tokens that are read matter.
    last = block_index == module.last_mixing_block
    queries = module.read_tokens if last else None
    if mode == 'full':
      branch = self.norm(x, f'{name}/norm1', epsilon)
      branch, keys = self.attention(branch, f'{name}/attn', queries)
      branch = self.scaled(branch, f'{name}/ls1')
      x = self.add('Add', self.leading(x, queries, 1), branch)
      if module.merge_counts[block_index] and queries is None:
        x = self.merge(x, keys, module.merge_counts[block_index])
    elif mode == 'linear':
      branch = self.norm(x, f'{name}/norm1', epsilon)
      narrow = (
        module.read_tokens and block_index >= module.last_mixing_block >= 0
      )
      rows = self.tokens
      if narrow and module.read_tokens:
        rows = module.read_tokens
      branch = self.affine_map(branch, f'{name}/attn', rows)
      x = self.add('Add', self.leading(x, queries, 1), branch)
    elif mode != 'absent':
      raise ModelError(f'block {block_index}: fold the model before exporting')
    branch = self.norm(x, f'{name}/norm2', epsilon)
    branch = self.activation(self.dense(branch, f'{name}/mlp/fc1'))
    branch = self.dense(branch, f'{name}/mlp/fc2')
    return self.add('Add', x, self.scaled(branch, f'{name}/ls2'))

  def merge(self, x: str, keys: str, count: int) -> str:
    """The stream with `count` tokens merged away."""
    if self.sizes is None:
      self.sizes = onnx_merging.ones(self.add, self.batch, self.tokens)
    x, self.sizes = onnx_merging.merge(
      self.add,
      x,
      self.sizes,
      keys,
      tokens=self.tokens,
      count=count,
      leading=self.module.num_prefix_tokens,
    )
    self.tokens -= count
    return x

  def token(self, x: str, index: int) -> str:
    return self.add('Gather', x, np.asarray(index, np.int64), axis=1)

  def readout(self, x: str) -> str:
    module, epsilon = self.module, self.module.norm_eps[-1]
    if module.norm_before_pool:
      x = self.norm(x, 'norm', epsilon)
    if module.pooling == 'token':
      pooled = [self.token(x, i) for i in range(1 + module.distilled)]
    else:
      x = self.slice(x, module.num_prefix_tokens, self.tokens, 1)
      pooled = [self.mean(x, 0)]
    if not module.norm_before_pool:
      pooled[0] = self.norm(pooled[0], 'fc_norm', epsilon)
    if module.num_classes:
      heads = ('head', 'head_dist')[: len(pooled)]
      pooled = [
        self.dense(x, head) for x, head in zip(pooled, heads, strict=True)
      ]
    if len(pooled) == 1:
      return pooled[0]
    return self.add('Mul', self.add('Add', *pooled), np.float32(0.5))


def build(folded: Model, dtype: str | np.dtype = 'float32') -> Graph:
  """The graph of a folded model.

  Args:
    folded: every block `full`, `linear` or `absent`.
    dtype: storage of the parameters that it can hold exactly; computation is
      float32.

  Raises:
    ModelError: a block in another mode, or a decoder.
  """
  if folded.module.segmentation is not None:
    raise ModelError(
      'format onnx: holds networks that classify; export one that segments as '
      'stablehlo'
    )
  writer = _Writer(folded, np.dtype(dtype))
  x = writer.embed('images')
  for block_index in range(folded.depth):
    x = writer.block(x, block_index)
  x = writer.readout(x)
  writer.graph.nodes.append(Node('Identity', (x,), ('logits',), {}))
  return writer.graph


def serialize(graph: Graph) -> bytes:
  """The file's contents, checked by the package `onnx`.

  Raises:
    LambdaVitError: `onnx` is not installed, or the weights do not fit.
  """
  onnx = import_extra('onnx')
  if sum(array.nbytes for array in graph.arrays.values()) > _LARGEST:
    raise LambdaVitError(
      'format onnx: more than 2 GB of weights do not fit in one file; leave '
      '`onnx` out of the formats'
    )
  helper = onnx.helper
  float32 = onnx.TensorProto.FLOAT
  proto = helper.make_graph(
    [
      helper.make_node(n.operator, n.inputs, n.outputs, **n.attributes)
      for n in graph.nodes
    ],
    'lambda_vit_jax',
    [
      helper.make_tensor_value_info(
        'images', float32, ['batch', *graph.image_shape]
      )
    ],
    [
      helper.make_tensor_value_info(
        'logits', float32, ['batch', graph.num_outputs]
      )
    ],
    [
      onnx.numpy_helper.from_array(array, name)
      for name, array in graph.arrays.items()
    ],
  )
  model = helper.make_model(
    proto,
    opset_imports=[helper.make_opsetid('', OPSET)],
    # The file format of that operator set, so that older runtimes read it.
    ir_version=8,
    producer_name='lambda_vit_jax',
  )
  onnx.checker.check_model(model)
  return model.SerializeToString()


def import_extra(name: str) -> Any:
  """A package of the extra `[onnx]`.

  Raises:
    LambdaVitError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError:
    raise LambdaVitError(
      f'format onnx: needs the package {name}; install it (pip install '
      "'lambda_vit_jax[onnx]'), or leave `onnx` out of the formats"
    ) from None
