"""What a ViT and its decoders are made of, as ONNX operations."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lambda_vit_jax.exporters.onnx.graph import Graph
from lambda_vit_jax.models.quantization import SCALE


class Layers:
  """Adds layers to a graph, by the paths of their parameters."""

  def __init__(self, graph: Graph, params: Mapping[str, Any], dtype: np.dtype):
    """Adds nothing yet.

    Args:
      graph: to add to.
      params: arrays by path.
      dtype: see `Graph.parameter`.
    """
    self.graph = graph
    self.params = dict(params)
    self.dtype = dtype
    self.add = graph.add

  def parameter(self, path: str) -> str:
    """The array at a path, as it is."""
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
    """LayerNorm over the last axis."""
    scale, bias = (self.parameter(f'{path}/{p}') for p in ('scale', 'bias'))
    return self.add(
      'LayerNormalization', x, scale, bias, axis=-1, epsilon=epsilon
    )

  def plain_norm(self, x: str, width: int, epsilon: float) -> str:
    """LayerNorm without parameters, over `width` channels."""
    scale, bias = np.ones(width, np.float32), np.zeros(width, np.float32)
    return self.add(
      'LayerNormalization', x, scale, bias, axis=-1, epsilon=epsilon
    )

  def scaled(self, x: str, path: str) -> str:
    """LayerScale, where the model has it."""
    if f'{path}/gamma' not in self.params:
      return x
    return self.add('Mul', x, self.parameter(f'{path}/gamma'))

  def reshape(self, x: str, shape: Sequence[int]) -> str:
    """A static shape but for one -1."""
    return self.add('Reshape', x, np.asarray(shape, np.int64))

  def leading(self, x: str, count: int | None, axis: int) -> str:
    """The first `count` tokens, all for None."""
    return x if count is None else self.slice(x, 0, count, axis)

  def slice(self, x: str, start: int, stop: int, axis: int) -> str:
    """What lies from `start` up to `stop` along `axis`."""
    bounds = [np.asarray([n], np.int64) for n in (start, stop, axis)]
    return self.add('Slice', x, *bounds)
