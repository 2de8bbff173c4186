"""Schedules of token merging: how many tokens each block merges away.

A block can merge away at most half of its patch tokens.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import AttentionMode

_SCHEDULE = re.compile(r'(?:(constant|decreasing):)?([0-9]{1,6})')


def merge_counts(
  schedule: Sequence[int], modes: Sequence[AttentionMode], patches: int
) -> tuple[int, ...]:
  """How many tokens each block really merges.

  Only blocks in mode `full` merge. The others have no keys, except `diluted`
  ones, which are about to lose them: if they merged until λ = 0, the number of
  tokens would then jump.

  Args:
    schedule: the requested number per block; empty for none.
    modes: one per block.
    patches: patch tokens of the first block.

  Returns:
    Per block the requested number, or as many as the tokens still allow.
  """
  counts = []
  for mode, wanted in zip(modes, schedule or (0,) * len(modes), strict=True):
    counts.append(min(wanted, patches // 2) if mode == 'full' else 0)
    patches -= counts[-1]
  return tuple(counts)


def merge_schedule(
  merge: Any,
  depth: int,
  patches: int,
  start: Any = 0,
  modes: Sequence[AttentionMode] | None = None,
) -> tuple[int, ...]:
  """How many tokens each block is to merge.

  Args:
    merge: tokens per block (`8`), a list of one number per block, or
      `constant:8` (the same as `8`) or `decreasing:8` (from 16 in block
      `start` linearly to 0 in the last block: 8 on average). None, 0 and ()
      are none. Numbers may come as text.
    depth: blocks.
    patches: patch tokens of one image.
    start: the first block that merges.
    modes: one per block. If given, a list is checked against the tokens that
      are left for each block. In the other forms, later blocks merge fewer if
      they run out of tokens.

  Returns:
    One number per block, or () where nothing merges.

  Raises:
    ModelError: another form, or more tokens than there are to merge.
  """
  first = _whole(start)
  if not 0 <= first < depth:
    raise ModelError(
      f'merge_start={start!r}: the first block that merges tokens, from 0 to '
      f'{depth - 1}'
    )
  wanted, exact = _parse(merge, depth, first)
  counts = (0,) * first + wanted[first:]
  left = patches
  for index, count in enumerate(counts):
    if count > left // 2:
      raise ModelError(
        f'merge: block {index} is to merge {count} tokens, but has '
        f'{left} of the image and can merge {left // 2}; lower the number'
      )
    if exact and modes is not None and modes[index] == 'full':
      left -= count
  return counts if any(counts) else ()


def _parse(merge: Any, depth: int, start: int) -> tuple[tuple[int, ...], bool]:
  """The requested numbers, and whether they must be met exactly."""
  values: Any = 0 if merge is None else merge
  if isinstance(merge, str):
    text = merge.strip().strip('()[]').strip()
    named = _SCHEDULE.fullmatch(text)
    if named and named[1] == 'decreasing':
      return _decreasing(int(named[2]), depth, start), False
    values = named[2] if named else text.strip(',').split(',')
  exact = isinstance(values, Iterable) and not isinstance(values, str)
  # An empty list is what a network without merging records.
  counts = tuple(map(_whole, values if exact else [values])) or (0,) * depth
  if any(count < 0 for count in counts):
    raise ModelError(
      f'merge={merge!r}: give the tokens that each block merges (8), a list '
      'with one number per block, constant:8 or decreasing:8'
    )
  if exact and len(counts) != depth:
    raise ModelError(
      f'merge: {len(counts)} numbers for {depth} blocks; give one number for '
      'all, or one per block'
    )
  return counts if exact else counts * depth, exact


def _whole(value: Any) -> int:
  """A non-negative integer, perhaps given as text; -1 for anything else."""
  text = str(value).strip()
  valid = re.fullmatch('[0-9]{1,6}', text) and not isinstance(value, bool)
  return int(text) if valid else -1


def _decreasing(mean: int, depth: int, start: int) -> tuple[int, ...]:
  """Linearly from 2·mean to 0, in whole numbers with the sum of the line."""
  blocks = depth - start
  if blocks == 1:
    return (0,) * start + (mean,)
  # Of the first k numbers of the line, rounded: the steps add up.
  sums = [
    round(mean * k * (2 * blocks - 1 - k) / (blocks - 1))
    for k in range(blocks + 1)
  ]
  steps = [after - before for before, after in itertools.pairwise(sums)]
  return (0,) * start + tuple(steps)
