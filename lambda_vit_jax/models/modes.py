"""The six attention modes of a block."""

import numbers
from collections.abc import Iterable, Sequence
from typing import cast

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import ATTENTION_MODES, AttentionMode

LINEAR_INPUTS = ('token', 'mean', 'class_map')
"""What mode `linear` can map (`LinearAttention`)."""


NO_ATTENTION: tuple[AttentionMode, ...] = ('identity', 'absent', 'linear')
"""Modes in which a block holds no attention parameters."""


def block_name(block_index: int) -> str:
  """Name of a block in the parameter tree: `block03`."""
  return f'block{block_index:02d}'


def check_layers(layers: Iterable[int], depth: int) -> tuple[int, ...]:
  """Returns `layers` sorted, as ints.

  Raises:
    ModelError: an index out of range, given twice, or no attention left.
  """
  if isinstance(layers, str) or not isinstance(layers, Iterable):
    raise ModelError(f'layers {layers!r}: give a list of block indices')
  layers = tuple(layers)
  for layer in layers:
    whole = isinstance(layer, numbers.Real) and layer % 1 == 0
    if isinstance(layer, bool) or not whole:
      raise ModelError(f'layer {layer!r}: a block index is a whole number')
    if not 0 <= layer < depth:
      raise ModelError(
        f'layer {layer} is out of range: blocks are 0 to {depth - 1}'
      )
    if layers.count(layer) > 1:
      raise ModelError(f'layer {layer} is given twice; name each block once')
  if depth and len(layers) >= depth:
    raise ModelError(
      f'all {depth} attention layers would be removed; keep at least one'
    )
  return tuple(sorted(int(layer) for layer in layers))


def modes_without(
  layers: Iterable[int],
  modes: Sequence[AttentionMode],
  replacement: AttentionMode = 'identity',
) -> tuple[AttentionMode, ...]:
  """Per-block modes with `layers` set to `replacement`.

  A block whose attention is gone already keeps its mode, so that removing a
  layer twice is removing it once.
  """
  layers = set(check_layers(layers, len(modes)))
  return tuple(
    replacement if index in layers and mode not in NO_ATTENTION else mode
    for index, mode in enumerate(modes)
  )


def removed_layers(modes: Sequence[AttentionMode]) -> tuple[int, ...]:
  """Indices of the blocks that hold no attention."""
  return tuple(i for i, mode in enumerate(modes) if mode in NO_ATTENTION)


def check_modes(modes: Sequence[str], depth: int) -> tuple[AttentionMode, ...]:
  """Returns the modes as a tuple.

  Raises:
    ModelError: a wrong count, an unknown mode, or no attention left.
  """
  if len(modes) != depth:
    raise ModelError(
      f'{len(modes)} attention modes for {depth} blocks; give one per block'
    )
  for index, mode in enumerate(modes):
    if mode not in ATTENTION_MODES:
      raise ModelError(
        f'block {index}: unknown attention mode {mode!r}; '
        f'known are {", ".join(ATTENTION_MODES)}'
      )
  known = cast(tuple[AttentionMode, ...], tuple(modes))
  check_layers(removed_layers(known), depth)
  return known


def check_linear_inputs(inputs: Iterable[str]) -> tuple[str, ...]:
  """Returns what mode `linear` maps, in the order of `LINEAR_INPUTS`.

  Raises:
    ModelError: an unknown input, or no `token`.
  """
  inputs = tuple(inputs)
  for name in inputs:
    if name not in LINEAR_INPUTS:
      raise ModelError(
        f'unknown input {name!r} of an affine map; known are '
        f'{", ".join(LINEAR_INPUTS)}'
      )
  if 'token' not in inputs:
    raise ModelError(
      f'inputs {list(inputs)}: an affine map needs the token itself; add token'
    )
  return tuple(name for name in LINEAR_INPUTS if name in inputs)


def doublings(modes: Sequence[AttentionMode]) -> tuple[int, ...]:
  """k(l): identity blocks up to and including block l (METHOD, section 2)."""
  counts, count = [], 0
  for mode in modes:
    count += mode == 'identity'
    counts.append(count)
  return tuple(counts)


def fold_modes(modes: Sequence[AttentionMode]) -> tuple[AttentionMode, ...]:
  """Modes after folding: identity blocks have become `absent`."""
  return tuple('absent' if mode == 'identity' else mode for mode in modes)


def fold_eps(
  norm_eps: Sequence[float], modes: Sequence[AttentionMode]
) -> tuple[float, ...]:
  """Epsilon per block and of the final norm, each divided by 4^k."""
  counts = doublings(modes)
  exponents = (*counts, counts[-1] if counts else 0)
  return tuple(
    eps / 4.0**count for eps, count in zip(norm_eps, exponents, strict=True)
  )


DILUTION_PATHS = ('attention', 'to_linear', 'from_linear')
"""From attention to the identity, or by way of an affine map:

  attention    (2 - λ)·x + λ·attn
  to_linear    x + λ·attn + (1 - λ)·(W·n(x) + b)
  from_linear  (2 - λ)·x + λ·(W·n(x) + b)
"""


HAS_ATTENTION = ('full', 'diluted', 'skip')
"""Modes whose attention parameters are in the tree."""


def mixes_tokens(
  mode: AttentionMode, linear_inputs: tuple[str, ...] = ('token',)
) -> bool:
  """Whether one token's output depends on other tokens."""
  return mode in ('full', 'diluted') or (
    mode == 'linear' and 'mean' in linear_inputs
  )
