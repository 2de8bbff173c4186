"""The layers of a ViT and its decoders as ONNX operations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lambda_vit_jax.exporters.onnx.graph import Graph
from lambda_vit_jax.models.quantization import SCALE


class Layers:
  """Adds layers to a graph, by the paths of their parameters."""

  def __init__(self, graph: Graph, params: Mapping[str, Any], dtype: np.dtype):
    """Stores the graph and the parameters.

    Args:
      graph: to add to.
      params: arrays by path.
      dtype: see `Graph.parameter`.
    """
    self.graph = graph
    self.params = dict(params)
    self.dtype = dtype
    self.add = graph.add
    # Name of the batch size, `[1]` int64, once there are images.
    self.batch = ''

  def parameter(self, path: str) -> str:
    """Adds the array at a path."""
    return self.graph.parameter(self.params[path], path, self.dtype)

  def kernel(self, path: str) -> str:
    """Adds a matrix, dequantised if it is stored as integers."""
    name = f'{path}/kernel'
    scale = self.params.get(f'{path}/{SCALE}')
    if scale is None:
      return self.parameter(name)
    return self.graph.quantized(self.params[name], scale, name)

  def dense(self, x: str, path: str) -> str:
    """`x·kernel`, plus the bias if there is one."""
    x = self.add('MatMul', x, self.kernel(path))
    if f'{path}/bias' not in self.params:
      return x
    return self.add('Add', x, self.parameter(f'{path}/bias'))

  def norm(self, x: str, path: str, epsilon: float) -> str:
    """LayerNorm over the last axis."""
    scale, bias = (self.parameter(f'{path}/{p}') for p in ('scale', 'bias'))
    return self._normalize(x, scale, bias, epsilon)

  def plain_norm(self, x: str, width: int, epsilon: float) -> str:
    """LayerNorm without parameters, over `width` channels."""
    scale, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
    return self._normalize(x, scale, bias, epsilon)

  def _normalize(self, x: str, scale: Any, bias: Any, epsilon: float) -> str:
    return self.add(
      'LayerNormalization', x, scale, bias, axis=-1, epsilon=epsilon
    )

  def scaled(self, x: str, path: str) -> str:
    """LayerScale, if the model has it."""
    if f'{path}/gamma' not in self.params:
      return x
    return self.add('Mul', x, self.parameter(f'{path}/gamma'))

  def reshape(self, x: str, shape: Sequence[int]) -> str:
    """Reshapes; at most one entry of `shape` is -1."""
    return self.add('Reshape', x, shape)

  def transpose(self, x: str, *axes: int) -> str:
    """Puts the axes in the given order."""
    return self.add('Transpose', x, perm=list(axes))

  def squeeze(self, x: str, axis: int) -> str:
    """Removes an axis of length 1."""
    return self.add('Squeeze', x, [axis])

  def unsqueeze(self, x: str, *axes: int) -> str:
    """Adds axes of length 1."""
    return self.add('Unsqueeze', x, axes)

  def leading(self, x: str, count: int | None, axis: int) -> str:
    """The first `count` tokens, or all if None."""
    return x if count is None else self.slice(x, 0, count, axis)

  def slice(self, x: str, start: int, stop: int, axis: int) -> str:
    """The range from `start` to `stop` (exclusive) along `axis`."""
    return self.add('Slice', x, [start], [stop], [axis])

  def shape(self, *rest: int) -> str:
    """The shape `[batch, *rest]`."""
    return self.add('Concat', self.batch, rest, axis=0)
