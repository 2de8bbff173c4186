"""Segmentation decoders as ONNX operations, the same as `models.decoders`.

Grids have channels last, except inside a convolution, for which ONNX needs
channels first.
"""

from collections.abc import Sequence

import numpy as np

from lambda_vit_jax.exporters.onnx.layers import Layers
from lambda_vit_jax.models.decoders import (
  EPSILON,
  POOLS,
  SCALES,
  Decoder,
  scaled_size,
)
from lambda_vit_jax.models.resampling import bilinear_matrix, pooling_matrix

_Size = tuple[int, int]


def decode(
  layers: Layers,
  decoder: Decoder,
  grids: Sequence[str],
  grid_size: _Size,
  image_size: _Size,
) -> str:
  """Grids of tokens to logits per pixel.

  Args:
    layers: adds to a graph; has the decoder's parameters.
    decoder: the kind of decoder.
    grids: those it reads, each `[batch, *grid_size, embed]`, at the scale of
      the stream.
    grid_size: rows and columns.
    image_size: height and width.

  Returns:
    `[batch, *image_size, num_classes]`.
  """
  if decoder.kind == 'linear':
    (x,), size = grids, grid_size
  else:
    x, size = _upernet(layers, grids, grid_size)
  x = layers.dense(x, 'decoder/classify')
  return _resize(layers, x, size, image_size)


def _upernet(
  layers: Layers, grids: Sequence[str], grid_size: _Size
) -> tuple[str, _Size]:
  """Features of `UperNet` before the classifier, and their grid size."""
  sizes = [scaled_size(grid_size, scale) for scale in SCALES]
  levels = []
  for place, (grid, size) in enumerate(zip(grids, sizes, strict=True)):
    level = layers.dense(grid, f'decoder/neck{place}')
    level = _resize(layers, level, grid_size, size)
    levels.append(_convolve(layers, level, f'decoder/rescale{place}'))
  fused = [
    _unit(layers, level, f'lateral{place}')
    for place, level in enumerate(levels[:-1])
  ]
  fused.append(_pool(layers, levels[-1], sizes[-1]))
  for place in reversed(range(len(fused) - 1)):
    above = _resize(layers, fused[place + 1], sizes[place + 1], sizes[place])
    fused[place] = layers.add('Add', fused[place], above)
  smooth = [
    _unit(layers, level, f'smooth{place}')
    for place, level in enumerate(fused[:-1])
  ]
  outputs = [
    _resize(layers, level, size, sizes[0])
    for level, size in zip([*smooth, fused[-1]], sizes, strict=True)
  ]
  x = _unit(layers, layers.add('Concat', *outputs, axis=-1), 'fuse')
  return x, sizes[0]


def _pool(layers: Layers, level: str, size: _Size) -> str:
  parts = [level]
  for cells in POOLS:
    pooled = _resample(layers, level, *(pooling_matrix(n, cells) for n in size))
    pooled = _unit(layers, pooled, f'pool{cells}')
    parts.append(_resize(layers, pooled, (cells, cells), size))
  return _unit(layers, layers.add('Concat', *parts, axis=-1), 'pooled')


def _unit(layers: Layers, x: str, name: str) -> str:
  """`ConvUnit`."""
  path = f'decoder/{name}'
  # A 1 × 1 convolution is a product, and stored as one.
  if np.ndim(layers.params[f'{path}/conv/kernel']) == 2:
    x = layers.dense(x, f'{path}/conv')
  else:
    x = _convolve(layers, x, f'{path}/conv')
  return layers.add('Relu', layers.norm(x, f'{path}/norm', EPSILON))


def _convolve(layers: Layers, x: str, path: str) -> str:
  """A 3 × 3 convolution with zero padding."""
  x = layers.transpose(x, 0, 3, 1, 2)
  name = f'{path}/kernel'
  kernel = np.transpose(layers.params[name], (3, 2, 0, 1))
  inputs = [x, layers.graph.parameter(kernel, name, layers.dtype)]
  if f'{path}/bias' in layers.params:
    inputs.append(layers.parameter(f'{path}/bias'))
  x = layers.add('Conv', *inputs, pads=[1, 1, 1, 1])
  return layers.transpose(x, 0, 2, 3, 1)


def _resize(layers: Layers, x: str, size: _Size, new_size: _Size) -> str:
  if size == new_size:
    return x
  return _resample(layers, x, *map(bilinear_matrix, size, new_size))


def _resample(
  layers: Layers, x: str, rows: np.ndarray, columns: np.ndarray
) -> str:
  """`models.resampling.resample`; products broadcast over leading axes."""
  x = layers.add('MatMul', columns, x)
  x = layers.transpose(x, 0, 2, 1, 3)
  x = layers.add('MatMul', rows, x)
  return layers.transpose(x, 0, 2, 1, 3)
