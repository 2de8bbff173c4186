"""An ONNX graph in memory, and its serialisation."""

import dataclasses
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.exporters.extras import import_extra, leave_out

OPSET = 17
"""The oldest operator set with LayerNormalization."""

# Protocol buffers hold at most 2 GiB; without weights the graph is small.
_LARGEST = 2_000_000_000


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation: ONNX operator, inputs, outputs and attributes."""

  operator: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: dict[str, Any]


@dataclasses.dataclass
class Graph:
  """Nodes in order of execution, and the arrays that they use.

  The input is `images` `[batch, *image_shape]` float32, the output `logits`
  `[batch, *output_shape]`.
  """

  image_shape: tuple[int, int, int]
  output_shape: tuple[int, ...]
  nodes: list[Node] = dataclasses.field(default_factory=list)
  arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def add(
    self, operator: str, *inputs: Any, count: int = 1, **attributes: Any
  ) -> Any:
    """Appends a node.

    Inputs that are not names become constants: arrays, numbers and lists of
    them. Returns the name of the output, a tuple of `count` names if more than
    one.
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
    """Adds a named array, stored in `dtype` if that is exact."""
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
    """Adds an int8 array `[inputs, outputs]`, times a scale for each output.

    Not as DequantizeLinear: before a product, onnxruntime takes that as
    permission to quantise the other factor as well.
    """
    stored = self._constant(np.asarray(integers), f'{name}.stored')
    scales = self._constant(np.asarray(scale, np.float32), f'{name}.scale')
    self.nodes.append(Node('Cast', (stored,), (f'{name}.cast',), {'to': 1}))
    self.nodes.append(Node('Mul', (f'{name}.cast', scales), (name,), {}))
    return name

  def _constant(self, array: np.ndarray, name: str) -> str:
    self.arrays[name] = array
    return name


def serialize(graph: Graph) -> bytes:
  """Returns the contents of the file, checked by the package `onnx`.

  Raises:
    LambdaVitError: `onnx` is not installed, or the weights do not fit.
  """
  onnx = import_extra('onnx', 'format onnx', leave_out('onnx'))
  if sum(array.nbytes for array in graph.arrays.values()) > _LARGEST:
    raise LambdaVitError(
      'format onnx: more than 2 GB of weights do not fit in one file; leave '
      '`onnx` out of the formats'
    )
  helper, array_proto = onnx.helper, onnx.numpy_helper.from_array

  def batches(name: str, shape: tuple[int, ...]) -> Any:
    float32 = onnx.TensorProto.FLOAT
    return helper.make_tensor_value_info(name, float32, ['batch', *shape])

  proto = helper.make_graph(
    [
      helper.make_node(n.operator, n.inputs, n.outputs, **n.attributes)
      for n in graph.nodes
    ],
    'lambda_vit_jax',
    [batches('images', graph.image_shape)],
    [batches('logits', graph.output_shape)],
    [array_proto(array, name) for name, array in graph.arrays.items()],
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
