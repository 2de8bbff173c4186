"""What a network costs: operations, or milliseconds measured on the device."""

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation.timing import time_in_turn
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation, processes

COSTS = ('macs', 'time')

Cost = Callable[[Model], float]

_ROUNDS = 7

_BATCH = 32
"""Images of a timed call."""


def check_cost(cost: str) -> None:
  """Refuses an unknown name, with a `UsageError`."""
  if cost not in COSTS:
    raise UsageError(
      f'compress.cost={cost!r} is not known; use {" or ".join(COSTS)}'
    )


def macs(model: Model) -> float:
  """Multiply-accumulates of one image that are executed."""
  return float(model.macs(executed=True))


def make(cost: str, known: Mapping[str, float]) -> Cost:
  """The cost of a name; `known` are times from an earlier search."""
  return macs if cost == 'macs' else BlockTimes(_BATCH, known)


class BlockTimes:
  """The time of a network in ms per image, as the sum of its blocks'.

  A block is timed when the first one like it is met, and has that time from then
  on: no comparison of two networks changes by noise.

  Attributes:
    known: ms per image, by what the block is; `stem` is embedding and readout.
  """

  def __init__(self, batch_size: int, known: Mapping[str, float] | None = None):
    self.known = dict(known or {})
    self._batch_size = batch_size

  def __call__(self, model: Model) -> float:
    module = model.module
    tokens = module.num_tokens
    total = self._ms('stem', lambda: self._stem(model))
    for position, mode in enumerate(module.attention_modes):
      narrow = position >= module.last_mixing_block
      read = module.read_tokens if narrow else None
      block = pieces.block_of(module, position, mode)
      # Where the tokens that are read are computed alone, none merge.
      merged = 0 if read is not None else block.merge
      words = [mode, *(block.linear_inputs if mode == 'linear' else ())]
      words += [str(model.mlp_dims[position]), 'narrow' * (read is not None)]
      if tokens < module.num_tokens:
        words.append(f'{tokens} tokens')
      if merged:
        words.append(f'merges {merged}')
      total += self._ms(
        ' '.join(filter(None, words)),
        functools.partial(self._block, module, block, read, tokens),
      )
      tokens -= merged
    return total

  def _ms(self, name: str, prepare: Callable[[], Callable[[], Any]]) -> float:
    """The time of a call that `prepare` makes; processes agree on it."""

    def measured() -> float:
      seconds = time_in_turn({name: prepare()}, _ROUNDS)[name]
      return 1e3 * statistics.median(seconds) / self._batch_size

    if name not in self.known:
      self.known[name] = processes.from_leader(measured)
    return self.known[name]

  def _stem(self, model: Model) -> Callable[[], Any]:
    module = model.module
    stem = pieces.stem_of(module.clone(merge=()))
    params = pieces.stem_params(model.params, model.depth)
    images = jnp.zeros((self._batch_size, *module.image_size, module.in_chans))
    return functools.partial(forward, stem, params, images)

  def _block(
    self, module: ViT, block: EncoderBlock, read: int | None, tokens: int
  ) -> Callable[[], Any]:
    # The time does not depend on the numbers.
    x = jnp.zeros((self._batch_size, tokens, module.embed_dim), module.dtype)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x)['params']
    params = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes
    )
    return functools.partial(_run_block, block, params, x, read)


@compilation.jit(static_argnames=('block', 'read_tokens'))
def _run_block(
  block: EncoderBlock, params: Params, x: Array, read_tokens: int | None
) -> Array:
  return pieces.run_block(block, params, x, read_tokens)[0]
