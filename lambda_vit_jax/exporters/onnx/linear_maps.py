"""The map of mode `linear` as ONNX operations, input by input."""

import numpy as np

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.exporters.onnx.graph import Graph
from lambda_vit_jax.exporters.onnx.layers import Layers
from lambda_vit_jax.models.map_inputs import CLASS_MAP
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name


class LinearMaps(Layers):
  """Adds maps to a graph; see `models.linear_attention`."""

  def __init__(self, graph: Graph, model: Model, dtype: np.dtype):
    super().__init__(graph, convert.flatten(model.params), dtype)
    self.module = model.module
    # Tokens in the stream, and the number of patches merged into each.
    self.tokens = model.module.num_tokens
    self.sizes: str | None = None

  def mean(self, x: str, keepdims: int) -> str:
    """The mean over all tokens (`keepdims`) or the patches, weighted by size."""
    if self.sizes is None:
      return self.add('ReduceMean', x, axes=[1], keepdims=keepdims)
    sizes = self.sizes
    if not keepdims:
      sizes = self.slice(sizes, self.module.num_prefix_tokens, self.tokens, 1)
    sizes = self.unsqueeze(sizes, 2)
    total, count = (
      self.add('ReduceSum', summed, [1], keepdims=keepdims)
      for summed in (self.add('Mul', x, sizes), sizes)
    )
    return self.add('Div', total, count)

  def affine_map(self, x: str, block_index: int, rows: int) -> str:
    """Mode `linear` on the first `rows` tokens, see `LinearAttention`."""
    path = f'{block_name(block_index)}/attn'
    inputs = self.module.inputs_of(block_index)
    mean = self.mean(x, 1) if 'mean' in inputs else None
    mixed = self._mixed(x, path, rows) if 'mixing' in inputs else None

    def mapped(tokens: slice, prefix: str) -> str:
      y = self.dense(
        self._tokens(x, self.tokens, tokens), f'{path}/{prefix}linear'
      )
      if mean is not None:
        y = self.add('Add', y, self.dense(mean, f'{path}/{prefix}mean'))
      if mixed is not None:
        part = self._tokens(mixed, rows, tokens)
        y = self.add('Add', y, self.dense(part, f'{path}/{prefix}mixed'))
      return y

    if CLASS_MAP not in inputs:
      y = mapped(slice(0, rows), '')
    else:
      y = mapped(slice(0, 1), 'class_')
      if rows > 1:
        y = self.add('Concat', y, mapped(slice(1, rows), ''), axis=1)
    return self._of_places(y, x, path, rows, inputs)

  def _tokens(self, x: str, length: int, tokens: slice) -> str:
    """Some of the `length` tokens of an array."""
    if tokens == slice(0, length):
      return x
    return self.slice(x, tokens.start, tokens.stop, 1)

  def _mixed(self, x: str, path: str, rows: int) -> str:
    """The values of the heads, mixed for the first `rows` tokens."""
    module, name = self.module, f'{path}/mixer/weights'
    heads, width = module.num_heads, module.embed_dim
    values = self.dense(x, f'{path}/values')
    values = self.reshape(values, (-1, self.tokens, heads, width // heads))
    self.params[name] = np.asarray(self.params[name])[:, :rows]
    values = self.transpose(values, 0, 2, 1, 3)
    mixed = self.add('MatMul', self.parameter(name), values)
    return self.reshape(self.transpose(mixed, 0, 2, 1, 3), (-1, rows, width))

  def _of_places(
    self, y: str, x: str, path: str, rows: int, inputs: tuple[str, ...]
  ) -> str:
    """Adds what depends on where a token is."""
    leading = self.module.num_prefix_tokens
    if 'neighbours' in inputs and rows > leading:
      around = self._neighbour_mean(self.slice(x, leading, self.tokens, 1))
      around = self.dense(around, f'{path}/neighbours')
      patches = self.add('Add', self.slice(y, leading, rows, 1), around)
      y = self.add('Concat', self.slice(y, 0, leading, 1), patches, axis=1)
    if 'positions' in inputs:
      name = f'{path}/positions/bias'
      self.params[name] = np.asarray(self.params[name])[:rows]
      y = self.add('Add', y, self.parameter(name))
    return y

  def _neighbour_mean(self, x: str) -> str:
    """3 x 3 means of the patches: one product with a matrix per side."""
    rows, columns = self.module.grid_size
    width = self.module.embed_dim
    x = self.reshape(x, (-1, rows, columns * width))
    x = self.add('MatMul', _window_mean(rows), x)
    x = self.reshape(x, (-1, rows, columns, width))
    x = self.add('MatMul', _window_mean(columns), x)
    return self.reshape(x, (-1, rows * columns, width))


def _window_mean(side: int) -> np.ndarray:
  """`[side, side]` float32: the mean of each place and the ones beside it."""
  near = abs(np.subtract.outer(np.arange(side), np.arange(side))) <= 1
  return (near / near.sum(axis=1, keepdims=True)).astype(np.float32)
