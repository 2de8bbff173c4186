"""λ from a network to its closed-form stand-in, on parameter trees.

Attention that becomes a map, or x + x, is diluted inside the network (mode
`diluted`). All else that a stand-in changes is linear in parameters, and blended
before the network runs: of the arrays θ that are trained, it computes with

  θ + λ·δ    where both networks have the array, with δ = dense - stand-in
  λ·θ        of the output weights of neurons, MLPs, attention and maps that leave

At λ = 1 it is the dense network, at λ = 0 the stand-in, to the bit, whose arrays
are then a part of θ.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models.map_inputs import WRITERS
from lambda_vit_jax.models.modes import block_name

# Of an attention layer, and of a map: what writes to the stream.
_OUTPUTS = frozenset({'proj', *WRITERS})


@dataclasses.dataclass(frozen=True, eq=False)
class Blend:
  """What λ does to the parameters of a network on the way to its stand-in.

  Attributes:
    differences: δ, a tree with some of the arrays of the parameters.
    staying: per block whose MLP is narrowed or leaves, the neurons that stay.
    leaving: blocks whose attention, or the map in its place, leaves without a
      trace, x + λ·attn.
  """

  differences: Params = dataclasses.field(default_factory=dict)
  staying: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
  leaving: tuple[int, ...] = ()

  def __call__(self, params: Params, factors: Array) -> Params:
    """The parameters to run the network with; traceable.

    Args:
      params: those that are trained.
      factors: λ per block, `[depth]` float32; outside of blocks the largest.
    """
    blended = dict(params)
    largest = factors.max()
    of_block = {block_name(i): factors[i] for i in range(len(factors))}
    for name, change in self.differences.items():
      factor = of_block.get(name, largest)
      blended |= _plus({name: params[name]}, {name: change}, factor)
    fading = [(i, 'mlp', 'fc2', kept) for i, kept in self.staying.items()]
    fading += [
      (i, 'attn', layer, np.zeros(0, int))
      for i in self.leaving
      for layer in sorted(_OUTPUTS & params[block_name(i)]['attn'].keys())
    ]
    for index, part, layer, rows in fading:
      block = blended[block_name(index)]
      factor = factors[index]
      faded = block[part] | {layer: _faded(block[part][layer], rows, factor)}
      blended[block_name(index)] = block | {part: faded}
    return blended


def _plus(params: Params, differences: Params, factor: Array) -> Params:
  """`params + factor · differences`, where there are any."""
  found = dict(params)
  for name, change in differences.items():
    if isinstance(change, Mapping):
      found[name] = _plus(params[name], dict(change), factor)
    else:
      found[name] = params[name] + factor * change
  return found


def _faded(layer: Params, neurons: np.ndarray, factor: Array) -> Params:
  """An output layer in which all rows but those of `neurons` fade with λ.

  Without any, so does the bias: the whole branch leaves.
  """
  if not len(neurons):
    return {name: factor * leaf for name, leaf in layer.items()}
  stays = np.zeros((layer['kernel'].shape[0], 1), bool)
  stays[neurons] = True
  kernel = jnp.where(stays, layer['kernel'], factor * layer['kernel'])
  return layer | {'kernel': kernel}


def differences(dense: Params, stand_in: Params) -> Params:
  """`dense - stand_in` of the arrays of both that differ, as a tree."""
  found: dict[str, Any] = {}
  for name in dense.keys() & stand_in.keys():
    if isinstance(dense[name], Mapping):
      if below := differences(dense[name], stand_in[name]):
        found[name] = below
      continue
    old, new = np.asarray(dense[name]), np.asarray(stand_in[name])
    if not np.array_equal(old, new):
      found[name] = old - new
  return found
