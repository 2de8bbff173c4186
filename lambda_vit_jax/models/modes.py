"""The six attention modes of a block, in one table.

The attention half of every block is one line with two numbers,

  x <- r·x + a·drop_path(attn(norm1(x))),

and `MODES` has r and a for each mode. Below the table is what follows from it
for a whole network, which has one mode per block. Plain Python: no arrays.
"""

import dataclasses
import itertools
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import AttentionMode
from lambda_vit_jax.models import map_inputs

ATTENTION = ('norm1', 'attn.qkv', 'attn.proj', 'ls1')
"""Parameters of an attention layer; `ls1` only with LayerScale."""

AFFINE_MAP = tuple(f'attn.{name}' for name in map_inputs.CHILDREN)
"""Parameters of the map in mode `linear`, which ones depends on its inputs."""


@dataclasses.dataclass(frozen=True)
class Mode:
  """One row of the table.

  Attributes:
    residual_scale: r; None for 2 - λ.
    attention_scale: a; None for λ. With 0, nothing is computed.
    parameters: of the attention half, in the tree of the block.
    mixes_tokens: whether a token's output depends on other tokens.
  """

  residual_scale: float | None
  attention_scale: float | None
  parameters: tuple[str, ...]
  mixes_tokens: bool

  @property
  def has_attention(self) -> bool:
    """Whether the parameters of the attention layer are in the tree."""
    return self.parameters == ATTENTION

  @property
  def adds_nothing(self) -> bool:
    """Whether the attention half only scales the stream."""
    return self.attention_scale == 0

  def scales(self, dilution_factor: Any = None) -> tuple[Any, Any]:
    """Returns r and a: numbers, or traced arrays in mode `diluted`.

    Args:
      dilution_factor: λ, a scalar array.

    Raises:
      ModelError: mode `diluted` without λ.
    """
    if self.residual_scale is not None:
      return self.residual_scale, self.attention_scale
    if dilution_factor is None:
      raise ModelError(
        'a block is in mode `diluted`, whose λ a call does not have; finish the '
        'dilution, or use apply(images, dilution_factor=…)'
      )
    return 2.0 - dilution_factor, dilution_factor


MODES: dict[AttentionMode, Mode] = {
  # The dense model.
  'full': Mode(1.0, 1.0, ATTENTION, True),
  # Training; λ is a traced input and goes from 1 to 0.
  'diluted': Mode(None, None, ATTENTION, True),
  # A trial of the search: what if this layer were left out?
  'skip': Mode(1.0, 0.0, ATTENTION, False),
  # The end of dilution: attention has become the identity, x + x.
  'identity': Mode(2.0, 0.0, (), False),
  # After folding, or after dilution without compensation.
  'absent': Mode(1.0, 0.0, (), False),
  # x + W·n(x) + b. Mixes tokens only with some inputs: `mixes_tokens`.
  'linear': Mode(1.0, 1.0, AFFINE_MAP, False),
}
"""The modes by name."""

ATTENTION_PARTS = tuple(dict.fromkeys(n.split('.')[0] for n in ATTENTION))
"""Children of a block that belong to its attention half."""

MLP_PARTS = ('norm2', 'mlp', 'ls2')
"""Children of a block that belong to its MLP half."""

DILUTION_PATHS = ('attention', 'to_linear', 'from_linear')
"""What mode `diluted` computes: from attention to x + x, or by way of a map.

  attention    (2 - λ)·x + λ·attn
  to_linear    x + λ·attn + (1 - λ)·(W·n(x) + b)
  from_linear  (2 - λ)·x + λ·(W·n(x) + b)
"""


def mixes_tokens(
  mode: AttentionMode, linear_inputs: Sequence[str] = ('token',)
) -> bool:
  """Whether one token's output depends on other tokens."""
  if mode == 'linear':
    rows = map_inputs.rows_of(linear_inputs).values()
    return any(row.mixes_tokens for row in rows)
  return MODES[mode].mixes_tokens


def computes_map(mode: AttentionMode, dilution_path: str = 'attention') -> bool:
  """Whether a block computes the map of mode `linear`, blended or alone."""
  blends = mode == 'diluted' and dilution_path != 'attention'
  return mode == 'linear' or blends


def block_name(block_index: int) -> str:
  """Name of a block in the parameter tree: `block03`."""
  return f'block{block_index:02d}'


class HasRemoved(Protocol):
  """A `Selection`, of which only the blocks that it removes matter here."""

  @property
  def removed(self) -> tuple[int, ...]:
    """Indices of the blocks."""


Layers = Iterable[int] | HasRemoved
"""Attention layers: block indices, or a `Selection`."""


def layer_indices(layers: Layers) -> Iterable[int]:
  """The block indices that `layers` stands for, unchecked.

  Raises:
    ModelError: neither block indices nor a `Selection`.
  """
  found = getattr(layers, 'removed', layers)
  if isinstance(found, str) or not isinstance(found, Iterable):
    raise ModelError(
      f'layers {_one_line(layers)}: give block indices or a Selection'
    )
  return found


def _one_line(value: Any) -> str:
  """The repr of a short value, the type of a long one."""
  text = repr(value)
  long = len(text) > 60 or '\n' in text
  return f'of type {type(value).__name__}' if long else text


def check_layers(layers: Iterable[int], depth: int) -> tuple[int, ...]:
  """Returns `layers` sorted, as ints.

  Raises:
    ModelError: an index out of range, given twice, or no attention left.
  """
  found = check_blocks(layers, depth)
  if depth and len(found) >= depth:
    raise ModelError(
      f'all {depth} attention layers would be removed; keep at least one'
    )
  return found


def check_blocks(layers: Iterable[int], depth: int) -> tuple[int, ...]:
  """`check_layers`, but there may be all of them."""
  if isinstance(layers, str) or not isinstance(layers, Iterable):
    raise ModelError(
      f'layers {_one_line(layers)}: give a list of block indices'
    )
  layers = tuple(layers)
  for layer in layers:
    whole = isinstance(layer, numbers.Real) and layer % 1 == 0
    if isinstance(layer, bool) or not whole:
      raise ModelError(
        f'layer {_one_line(layer)}: a block index is a whole number'
      )
    if not 0 <= layer < depth:
      raise ModelError(
        f'layer {layer} is out of range: blocks are 0 to {depth - 1}'
      )
    if layers.count(layer) > 1:
      raise ModelError(f'layer {layer} is given twice; name each block once')
  return tuple(sorted(int(layer) for layer in layers))


def modes_without(
  layers: Layers,
  modes: Sequence[AttentionMode],
  replacement: AttentionMode = 'identity',
) -> tuple[AttentionMode, ...]:
  """Per-block modes with `layers` set to `replacement`.

  A block that has lost its attention already keeps its mode, so that removing a
  layer twice is the same as removing it once.
  """
  gone = set(check_layers(layer_indices(layers), len(modes)))
  return tuple(
    replacement if index in gone and MODES[mode].has_attention else mode
    for index, mode in enumerate(modes)
  )


def removed_layers(modes: Sequence[AttentionMode]) -> tuple[int, ...]:
  """Indices of the blocks without an attention layer."""
  return tuple(i for i, m in enumerate(modes) if not MODES[m].has_attention)


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
    if mode not in tuple(MODES):  # unhashable ones too
      raise ModelError(
        f'block {index}: unknown attention mode {mode!r}; '
        f'known are {", ".join(MODES)}'
      )
  known = cast(tuple[AttentionMode, ...], tuple(modes))
  check_layers(removed_layers(known), depth)
  return known


def doublings(modes: Sequence[AttentionMode]) -> tuple[int, ...]:
  """k(l): identity blocks up to and including block l.

  The stream after block l is 2^k(l) times that of the folded network.
  """
  doubled = (int(MODES[mode].residual_scale == 2) for mode in modes)
  return tuple(itertools.accumulate(doubled))


def fold_modes(modes: Sequence[AttentionMode]) -> tuple[AttentionMode, ...]:
  """Modes after folding: identity blocks have become `absent`."""
  return tuple('absent' if mode == 'identity' else mode for mode in modes)


def fold_eps(
  norm_eps: Sequence[float], modes: Sequence[AttentionMode]
) -> tuple[float, ...]:
  """Epsilon per block and of the final norm, each divided by 4^k."""
  counts = doublings(modes)
  exponents = (*counts, max(counts, default=0))
  return tuple(
    eps / 4.0**count for eps, count in zip(norm_eps, exponents, strict=True)
  )
