"""Run a dense network block by block, and write rows of results.

Shared by neighbourhood.py and narrow_layers.py.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from neighbour_maps import PARTS, columns_of, features

from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training_free.least_squares import AffineMap

IMAGES = 512
# Small enough for a block's activations to stay in a core's cache.
CHUNK = 50

Maps = Mapping[int, tuple[AffineMap, AffineMap] | None]
"""Per replaced block, the maps of class token and patches; None skips it."""


@functools.partial(jax.jit, static_argnames=('block',))
def run_full(block: EncoderBlock, params: Params, x: Array) -> tuple:
  """The streams after the attention half and after the block."""
  _, taps = pieces.run_block(block, params, x)
  return taps['after_attention'], taps['output']


@functools.partial(jax.jit, static_argnames=('block', 'grid', 'parts'))
def run_mapped(
  block: EncoderBlock,
  params: Params,
  maps: tuple[AffineMap, AffineMap],
  x: Array,
  grid: tuple[int, int],
  parts: tuple[str, ...],
) -> tuple:
  """`run_full` with maps of `parts` instead of attention; `block` has none."""
  leading = x.shape[1] - grid[0] * grid[1]
  if not parts:
    return x, pieces.run_block(block, params, x)[0]
  inputs = features(x, block.norm_eps, grid, parts)
  groups = (inputs[:, :leading], inputs[:, leading:])
  mapped = [
    group @ affine.kernel + affine.bias
    for group, affine in zip(groups, maps, strict=True)
  ]
  x = x + jnp.concatenate(mapped, axis=1)
  return x, pieces.run_block(block, params, x)[0]


@functools.partial(jax.jit, static_argnames=('stem',))
def read_out(stem: ViT, params: Params, x: Array) -> Array:
  """Logits from the last stream."""
  return pieces.readout(stem, params, x[:, : stem.read_tokens])[0]


jax.tree_util.register_dataclass(AffineMap, ['kernel', 'bias'], [])


class Network:
  """A network that runs block by block, with maps for some attention layers."""

  def __init__(self, model: Model, params: Params | None = None):
    self.model = model
    self.depth = model.depth
    self.params = model.params if params is None else params
    self.grid = model.module.grid_size
    self._stem = pieces.stem_of(model.module)

  def block(self, index: int) -> EncoderBlock:
    return pieces.block_of(self.model.module, index, 'full')

  def embed(self, images: np.ndarray) -> Array:
    outer = pieces.stem_params(self.params, self.depth)
    return pieces.embed(self._stem, outer, images)

  def step(self, index: int, x: Array, maps: Maps) -> tuple[Array, Array]:
    """The streams after the attention half and after the block."""
    if index not in maps:
      params = pieces.block_params(self.params, index)
      return run_full(self.block(index), params, x)
    parts, chosen = _used(maps[index], x.shape[-1])
    block = pieces.block_of(self.model.module, index, 'absent')
    params = pieces.mlp_params(self.params, index)
    return run_mapped(block, params, chosen, x, self.grid, parts)

  def logits(self, x: Array, start: int, maps: Maps) -> np.ndarray:
    """Logits from the stream before block `start`."""
    for index in range(start, self.depth):
      x = self.step(index, x, maps)[1]
    outer = pieces.stem_params(self.params, self.depth)
    return np.asarray(read_out(self._stem, outer, x))


def _used(
  maps: tuple[AffineMap, AffineMap] | None, width: int
) -> tuple[tuple[str, ...], tuple[AffineMap, ...]]:
  """The parts of the inputs that are used, and float32 kernels of them."""
  maps = maps or ()
  columns = {part: columns_of(part, width) for part in PARTS}
  parts = tuple(
    part
    for part in PARTS
    if any(
      part == 'token' or affine.kernel[columns[part]].any() for affine in maps
    )
  )
  return parts, tuple(
    AffineMap(
      np.concatenate(
        [affine.kernel[columns[part]] for part in parts], dtype=np.float32
      ),
      affine.bias.astype(np.float32),
    )
    for affine in maps
  )


class Table:
  """The rows of one network, written as they are computed."""

  def __init__(self, name: str, run: Run, output: pathlib.Path):
    self._output = output
    self.model = run.load('pretrain')
    self.network = Network(self.model)
    preprocessing = self.model.preprocessing
    self.batches = list(run.holdout_batches(preprocessing, IMAGES))
    test = list(run.eval_batches(preprocessing))
    images, self._labels = (
      np.concatenate([batch[key][batch['mask']] for batch in test])
      for key in ('image', 'label')
    )
    holdout = np.concatenate([b['image'][b['mask']] for b in self.batches])
    self._streams = {0: [self.network.embed(c) for c in self._chunks(images)]}
    self._holdout = {0: self.network.embed(holdout)}
    self._hits: dict[str, np.ndarray] = {}
    found = common.read(output)
    self._all = found
    self.entry = found[name] = {
      **common.provenance(),
      'variant': self.model.variant,
      'grid': list(self.network.grid),
      'images': len(holdout),
      'num_images': len(self._labels),
      'orders': {},
      'rows': {},
    }

  def _chunks(self, images: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(images), CHUNK):
      yield images[first : first + CHUNK]

  def stream(self, start: int) -> list[Array]:
    """The dense network's streams before a block, of the test images."""
    while (last := max(self._streams)) < start:
      self._streams[last + 1] = [
        self.network.step(last, x, {})[1] for x in self._streams[last]
      ]
    return self._streams[start]

  def holdout(self, start: int) -> Array:
    """The same for the images that maps are fitted to."""
    while (last := max(self._holdout)) < start:
      self._holdout[last + 1] = self.network.step(
        last, self._holdout[last], {}
      )[1]
    return self._holdout[start]

  def write(self) -> None:
    common.write(self._output, self._all)

  def score(self, logits: Sequence[np.ndarray]) -> dict[str, Any]:
    """Accuracy, loss, and as `hits` which images are classified correctly."""
    rows = np.concatenate(logits).astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    loss = np.log(np.exp(rows).sum(axis=1))
    loss -= rows[np.arange(len(rows)), self._labels]
    hits = rows.argmax(axis=1) == self._labels
    return {
      'top1': float(hits.mean()),
      'loss': float(loss.mean()),
      'hits': hits,
    }

  def row(
    self,
    key: str,
    network: Network,
    start: int,
    maps: Maps,
    against: str | None = None,
    **more: Any,
  ) -> None:
    """Scores a network and writes its row.

    Args:
      key: its name.
      network: the network to score.
      start: the first block that differs from the dense network's.
      maps: of the blocks that have maps.
      against: the row to compare with: a paired difference with half its
        95% interval.
      **more: further fields of the row.
    """
    scored = self.score(
      [network.logits(x, start, maps) for x in self.stream(start)]
    )
    self._hits[key] = hits = scored.pop('hits')
    if against is not None:
      gains = hits.astype(float) - self._hits[against]
      scored['against'] = against
      scored['gain'] = float(gains.mean())
      scored['interval'] = float(1.96 * gains.std() / len(gains) ** 0.5)
    self.entry['rows'][key] = scored | {'blocks': sorted(maps)} | more
    self.write()
    print(key, self.entry['rows'][key], flush=True)
