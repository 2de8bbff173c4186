"""The parts of a network that can go, and the network without one of them.

A part is data: a kind and a block. A block loses its attention in two steps, to an
affine map and then to nothing, its hidden neurons by eighths, and tokens by a
thirty-second of the image's patches, so that each is one part after the other.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

from lambda_vit_jax.core.errors import UsageError, nearest
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import edits, surgery
from lambda_vit_jax.models.build import with_mlp_dims
from lambda_vit_jax.models.merge_schedule import merge_counts
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, block_name

Kind = Literal['attention', 'map', 'neurons', 'mlp', 'block', 'tokens']

KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can go.

  attention  an attention layer; a map takes its place, or nothing
  map        the affine map in the place of an attention layer
  neurons    an eighth of an MLP's hidden layer, as the variant has it
  mlp        a whole MLP
  block      a whole block
  tokens     patch tokens, which merge with others after a block's attention
"""

GROUPS: dict[str, tuple[Kind, ...]] = {
  'attention': ('attention', 'map'),
  'neurons': ('neurons',),
  'mlps': ('mlp',),
  'blocks': ('block',),
  'tokens': ('tokens',),
}
"""The kinds that each name of the argument `parts` stands for."""

EIGHTHS = 8

_SHARE_OF_TOKENS = 32
"""Of an image's patches, one in so many merges more."""


@dataclasses.dataclass(frozen=True, order=True)
class Part:
  """One part of a network.

  Attributes:
    block: index in the variant, which dropped blocks do not change.
    kind: of `KINDS`.
  """

  block: int
  kind: Kind

  def __str__(self) -> str:
    return f'{self.kind} {self.block}'


def check_parts(names: str | Collection[str]) -> tuple[str, ...]:
  """Returns names of `GROUPS`, each once and in their order.

  Raises:
    UsageError: an unknown name, or none.
  """
  names = (names,) if isinstance(names, str) else tuple(names)
  for name in names:
    if name not in GROUPS:
      raise UsageError(
        f'compress.parts={list(names)!r}: {name!r} is not known'
        f'{nearest(str(name), GROUPS)} (known: {", ".join(GROUPS)})'
      )
  if not names:
    raise UsageError(
      f'compress.parts is empty: give some of {", ".join(GROUPS)}'
    )
  return tuple(name for name in GROUPS if name in names)


def position_of(model: Model, block: int) -> int:
  """The index in `model` of a block of the variant."""
  return model.block_origins.index(block)


def parts_left(model: Model, names: Collection[str]) -> list[Part]:
  """The parts of a network that can go next, in the order of its blocks.

  One attention layer always stays, and so does every block that doubles the
  stream. The neurons of an MLP with a normalised hidden layer stay as well.

  Args:
    model: left as it is.
    names: of `GROUPS`.

  Raises:
    ModelError: tokens of a network whose maps need every patch in its place.
  """
  kinds = [kind for name in names for kind in GROUPS[name]]
  rows = [MODES[mode] for mode in model.attention_modes]
  last = sum(row.has_attention for row in rows) == 1
  found = []
  mergeable = _mergeable(model) if 'tokens' in names else ()
  for position, block in enumerate(model.block_origins):
    row, width = rows[position], model.mlp_dims[position]
    mixes = row.has_attention
    possible: dict[Kind, bool] = {
      'attention': mixes and not last,
      'map': model.attention_modes[position] == 'linear',
      'neurons': bool(_narrower(model, position)),
      'mlp': width > 0,
      'block': not (mixes and last) and row.residual_scale == 1,
      'tokens': position in mergeable,
    }
    found += [Part(block, kind) for kind in kinds if possible[kind]]
  return found


def _narrower(model: Model, position: int) -> int:
  """The next smaller width of an MLP, 0 if there is none."""
  if model.module.mlp_norm:
    return 0
  whole = model.module.clone(mlp_dims=()).hidden_dims[position]
  steps = {whole * eighth // EIGHTHS for eighth in range(1, EIGHTHS)}
  width = model.mlp_dims[position]
  return max((step for step in steps if 0 < step < width), default=0)


def narrower(model: Model, part: Part) -> int:
  """The width of the MLP once the neurons of `part` are gone."""
  return _narrower(model, position_of(model, part.block))


def unmerged(model: Model) -> Model:
  """The network in which no tokens merge."""
  return edits.merge_tokens(model, 0)


def _mergeable(model: Model) -> tuple[int, ...]:
  """The positions of blocks that can merge more tokens than they do."""
  module = model.module
  if module.rotary or module.relative_bias:
    return ()
  patches = module.num_tokens - module.num_prefix_tokens
  found = []
  for position in range(model.depth):
    wanted = _merged_more(model, position)
    # This block has so many tokens to merge, and later ones what they had.
    if wanted == merge_counts(wanted, module.attention_modes, patches):
      found.append(position)
  return tuple(found)


def _merged_more(model: Model, position: int) -> tuple[int, ...]:
  """The merging of all blocks, with one step more in a block."""
  module = model.module
  patches = module.num_tokens - module.num_prefix_tokens
  counts = list(module.merge_counts)
  counts[position] += max(patches // _SHARE_OF_TOKENS, 1)
  return tuple(counts)


def last_mixing(model: Model) -> int:
  """The last block that mixes tokens, as the variant counts; -1 for none."""
  position = model.module.last_mixing_block
  return model.block_origins[position] if position >= 0 else -1


def mender(model: Model, part: Part) -> int | None:
  """The block whose MLP makes up for a part; None if there is none.

  That of the part's own block if it stays, the one before a block that goes, and
  else the next one.
  """
  having = [
    block
    for block, width in zip(model.block_origins, model.mlp_dims, strict=True)
    if width
  ]
  after = [block for block in having if block > part.block]
  first: list[int] = []
  if part.kind == 'block':
    first = [block for block in having if block < part.block][-1:]
  elif part.kind != 'mlp' and part.block in having:
    first = [part.block]
  return next(iter((*first, *after)), None)


def without(
  model: Model,
  part: Part,
  inputs: Sequence[str] = (),
  repaired: Mapping[int, Params] | None = None,
) -> Model:
  """The network without a part.

  Args:
    model: left as it is.
    part: one of `parts_left`.
    inputs: of the map that takes the place of an attention layer; empty for
      nothing in its place.
    repaired: parameters of blocks by their index in the variant, which replace
      those of `model`. Without them the result has the right module, by which to
      count, but old parameters.
  """
  new = {
    block_name(position_of(model, block)): params
    for block, params in (repaired or {}).items()
  }
  model = model.replace(params=model.params | new)
  position = position_of(model, part.block)
  if part.kind == 'block':
    return edits.drop_blocks(model, (position,))
  if part.kind == 'mlp':
    return edits.narrow_mlps(model, {position: ()})
  if part.kind == 'neurons':
    widths = list(model.mlp_dims)
    widths[position] = _narrower(model, position)
    return model.replace(module=with_mlp_dims(model.module, widths))
  if part.kind == 'tokens':
    return edits.merge_tokens(model, _merged_more(model, position))
  return _without_attention(
    model, position, inputs if part.kind == 'attention' else ()
  )


def _without_attention(
  model: Model, position: int, inputs: Sequence[str]
) -> Model:
  """A map of `inputs`, or nothing, instead of what a block has there.

  Without keys, the block merges no tokens.
  """
  merged = list(model.module.merge_counts)
  merged[position] = 0
  modes = list(model.attention_modes)
  modes[position] = 'linear' if inputs else 'absent'
  module = edits.with_modes(model.module, modes, {position: inputs})
  module = module.clone(merge=tuple(merged) if any(merged) else ())
  params = model.params
  if not inputs:
    params = surgery.prune_tree(params, (position,))
  return model.replace(module=module, params=params)
