"""Inputs of the map that replaces an attention layer, in one table.

Mode `linear` adds to each token a linear function of some inputs. `INPUTS` has
for each what it costs, where its parameters are and which tokens it reads;
`models.linear_attention` computes them. Plain Python: no arrays.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from lambda_vit_jax.core.errors import ModelError

CLASS_MAP = 'class_map'
"""The option that the class token has maps of its own."""

LEAST_GRID = 3
"""Patches along each side from which on `neighbours` are fewer than all."""


@dataclasses.dataclass(frozen=True)
class Extent:
  """Sizes that the cost of a map depends on.

  Attributes:
    width: channels of the stream.
    heads: of the attention layer that was replaced.
    tokens: of one image.
    prefix: tokens before the patches.
    computed: leading tokens that get an output.
    own: whether the class token has maps of its own.
  """

  width: int
  heads: int
  tokens: int
  prefix: int
  computed: int
  own: bool

  @property
  def square(self) -> int:
    """Numbers in one matrix of the width."""
    return self.width**2

  @property
  def maps(self) -> int:
    """Maps that are computed; the class token's may be the only one."""
    return self.own + (self.computed > self.own)


@dataclasses.dataclass(frozen=True)
class MapInput:
  """One row of the table.

  Attributes:
    child: child of `attn` that takes the input to the stream.
    by_class: whether the class token can have a map of its own for it,
      `class_` and the name of the child.
    sources: further children, from which the input itself is computed.
    mixes_tokens: whether it depends on other tokens.
    needs_grid: whether every patch has to be in its place (no merging).
    one_size: whether its parameters are those of one number of tokens.
    macs: multiply-accumulates per image.
    parameters: numbers in the tree.
  """

  child: str
  by_class: bool
  sources: tuple[str, ...]
  mixes_tokens: bool
  needs_grid: bool
  one_size: bool
  macs: Callable[[Extent], int]
  parameters: Callable[[Extent], int]

  @property
  def children(self) -> tuple[str, ...]:
    """Children of `attn` that write to the stream."""
    own = (f'class_{self.child}',) if self.by_class else ()
    return (self.child, *own)


INPUTS: dict[str, MapInput] = {
  # n(x) of the token itself, and the intercept.
  'token': MapInput(
    child='linear',
    by_class=True,
    sources=(),
    mixes_tokens=False,
    needs_grid=False,
    one_size=False,
    macs=lambda e: e.computed * e.square,
    parameters=lambda e: e.maps * (e.square + e.width),
  ),
  # Its mean over the image's tokens: one product per image and map.
  'mean': MapInput(
    child='mean',
    by_class=True,
    sources=(),
    mixes_tokens=True,
    needs_grid=False,
    one_size=False,
    macs=lambda e: e.maps * e.square,
    parameters=lambda e: e.maps * e.square,
  ),
  # Its mean over the 3 x 3 patches around; 0 for the tokens before the patches.
  'neighbours': MapInput(
    child='neighbours',
    by_class=False,
    sources=(),
    mixes_tokens=True,
    needs_grid=True,
    one_size=False,
    macs=lambda e: max(e.computed - e.prefix, 0) * e.square,
    parameters=lambda e: e.square,
  ),
  # An intercept for each position.
  'positions': MapInput(
    child='positions',
    by_class=False,
    sources=(),
    mixes_tokens=False,
    needs_grid=True,
    one_size=True,
    macs=lambda e: 0,
    parameters=lambda e: e.tokens * e.width,
  ),
  # Values of the heads, mixed by a fixed matrix over the tokens per head.
  'mixing': MapInput(
    child='mixed',
    by_class=True,
    sources=('values', 'mixer'),
    mixes_tokens=True,
    needs_grid=True,
    one_size=True,
    macs=lambda e: (
      (e.tokens + e.computed) * e.square + e.computed * e.tokens * e.width
    ),
    parameters=lambda e: (
      e.square + e.width + e.heads * e.tokens**2 + e.maps * e.square
    ),
  ),
}
"""The inputs by name, in the order of their columns in a fit."""

LINEAR_INPUTS = (
  'token',
  'mean',
  CLASS_MAP,
  'neighbours',
  'positions',
  'mixing',
)
"""Names that a model's `linear_inputs` may have, in the order of a file."""

WRITERS = tuple(child for row in INPUTS.values() for child in row.children)
"""Children of `attn` in mode `linear` that write to the stream."""

CHILDREN = WRITERS + tuple(s for row in INPUTS.values() for s in row.sources)
"""All children of `attn` in mode `linear`."""

LinearInputs = tuple[str, ...] | tuple[tuple[str, ...], ...]
"""The inputs of all maps of a model, or those of each of its blocks."""

PROJECTIONS = tuple(c for c in CHILDREN if c not in ('positions', 'mixer'))
"""Those that are a product of each token with a matrix."""


def check_linear_inputs(inputs: Iterable[str]) -> tuple[str, ...]:
  """Returns the inputs of mode `linear`, in the order of `LINEAR_INPUTS`.

  Raises:
    ModelError: an unknown input, or no `token`.
  """
  inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
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


def rows_of(inputs: Sequence[str]) -> dict[str, MapInput]:
  """The rows of a model's `linear_inputs`, in the order of the table."""
  return {name: row for name, row in INPUTS.items() if name in inputs}


def check_all_inputs(
  inputs: Iterable[str] | Iterable[Iterable[str]], depth: int
) -> LinearInputs:
  """Returns `LinearInputs`, checked; those that all blocks share as one tuple.

  Raises:
    ModelError: an unknown input, no `token`, or a wrong number of blocks.
  """
  inputs = tuple(inputs)
  if all(isinstance(name, str) for name in inputs):
    return check_linear_inputs(name for name in inputs if isinstance(name, str))
  if len(inputs) != depth:
    raise ModelError(
      f'inputs of maps for {len(inputs)} blocks; {depth} blocks need {depth}'
    )
  each = tuple(map(check_linear_inputs, inputs))
  return each[0] if len(set(each)) == 1 else each


def shared_inputs(
  modes: Sequence[str], inputs: Sequence[tuple[str, ...]]
) -> LinearInputs:
  """The inputs of all maps, or per block where they differ.

  Args:
    modes: of all blocks.
    inputs: of the blocks in mode `linear`, in their order.
  """
  if len(set(inputs)) < 2:
    return inputs[0] if inputs else ('token',)
  of_maps = iter(inputs)
  return tuple(
    next(of_maps) if mode == 'linear' else ('token',) for mode in modes
  )


def inputs_of_block(inputs: LinearInputs, block_index: int) -> tuple[str, ...]:
  """The inputs of one block's map."""
  own = inputs[block_index] if isinstance(inputs[0], tuple) else inputs
  return check_linear_inputs(own)


def union(inputs: LinearInputs) -> tuple[str, ...]:
  """Every input of a model's maps, in the order of `LINEAR_INPUTS`."""
  names = {
    name for own in inputs for name in ([own] if isinstance(own, str) else own)
  }
  return check_linear_inputs(names)


def inputs_of_map(children: Iterable[str]) -> tuple[str, ...]:
  """The inputs of a map, from the children of its `attn`."""
  children = set(children)
  found = {name for name, row in INPUTS.items() if row.child in children}
  if f'class_{INPUTS["token"].child}' in children:
    found.add(CLASS_MAP)
  return check_linear_inputs(found)


def has_neighbours(grid: tuple[int, int]) -> bool:
  """Whether a grid of patches is large enough for `neighbours`."""
  return min(grid) >= LEAST_GRID


def check_grid(inputs: Sequence[str], grid: tuple[int, int]) -> None:
  """Refuses `neighbours` where a 3 x 3 window covers a side.

  Raises:
    ModelError: fewer than three patches along a side.
  """
  if 'neighbours' in inputs and not has_neighbours(grid):
    raise ModelError(
      f'a grid of {grid[0]} x {grid[1]} patches is too small for the input '
      f'neighbours, a mean of 3 x 3; use mean instead'
    )


def check_class(inputs: Sequence[str], class_token: bool) -> None:
  """Refuses a map for the class token of a network without one.

  Raises:
    ModelError: `class_map` is one of the inputs.
  """
  if CLASS_MAP in inputs and not class_token:
    raise ModelError(
      'an affine map has the input `class_map`, but the network has no class '
      'token; leave class_map out'
    )


def check_unmerged(inputs: Sequence[str]) -> None:
  """Refuses inputs that need every patch in its place, for merged tokens.

  Raises:
    ModelError: names them.
  """
  bound = [name for name, row in rows_of(inputs).items() if row.needs_grid]
  if bound:
    raise ModelError(
      f'affine maps of {" and ".join(bound)} need every patch in its place, '
      'and merged tokens have none: leave out token merging or these inputs'
    )


def check_size(
  inputs: Sequence[str], fitted: tuple[int, int], wanted: tuple[int, int]
) -> None:
  """Refuses another image size for maps that were fitted for one.

  Raises:
    ModelError: names both sizes.
  """
  bound = [name for name, row in rows_of(inputs).items() if row.one_size]
  if bound and fitted != wanted:
    raise ModelError(
      f'affine maps of {" and ".join(bound)} were fitted for images of '
      f'{fitted[0]} x {fitted[1]}, not {wanted[0]} x {wanted[1]}; set the size '
      'of the dense model, then fit the maps'
    )


def map_macs(inputs: Sequence[str], extent: Extent) -> int:
  """Multiply-accumulates of a map, per image."""
  return sum(row.macs(extent) for row in rows_of(inputs).values())


def map_parameters(inputs: Sequence[str], extent: Extent) -> int:
  """Parameters of a map."""
  return sum(row.parameters(extent) for row in rows_of(inputs).values())
