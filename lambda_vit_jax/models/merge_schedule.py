"""Schedules of token merging: how many tokens each block merges away."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import AttentionMode

SCHEDULES = ('constant', 'decreasing')
"""R in every block, or linearly from 2·R in the first one to 0 in the last."""

_SCHEDULE = re.compile(r'([a-z]+):([0-9]{1,6})')
_INTEGER = re.compile(r'[0-9]{1,6}')


def most(patches: int) -> int:
  """How many of this many patch tokens one block can merge away."""
  return patches // 2


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
    counts.append(min(wanted, most(patches)) if mode == 'full' else 0)
    patches -= counts[-1]
  return tuple(counts)


@dataclasses.dataclass(frozen=True)
class _Requested:
  """A parsed `merge`, and whether its numbers must be met exactly."""

  counts: tuple[int, ...]
  exact: bool


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
      `start` linearly to 0 in the last block: 8 on average). None and 0 are
      none. Numbers may come as text.
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
  text = str(start).strip()
  whole = not isinstance(start, bool) and _INTEGER.fullmatch(text)
  if not whole or int(text) >= depth:
    raise ModelError(
      f'merge_start={start!r}: the first block that merges tokens, from 0 to '
      f'{depth - 1}'
    )
  first = int(text)
  wanted = _parse(merge, depth, first)
  counts = (0,) * first + wanted.counts[first:]
  left = patches
  for index, count in enumerate(counts):
    if count > most(left):
      raise ModelError(
        f'merge: block {index} is to merge {count} tokens, but has '
        f'{left} of the image and can merge {most(left)}; lower the number'
      )
    if wanted.exact and modes is not None and modes[index] == 'full':
      left -= count
  return counts if any(counts) else ()


def _parse(merge: Any, depth: int, start: int) -> _Requested:
  """The numbers that a user's `merge` means."""
  if merge is None:
    return _Requested((0,) * depth, False)
  if isinstance(merge, str):
    text = merge.strip().strip('()[]').strip()
    if ',' in text:
      return _parse(text.strip(',').split(','), depth, start)
    named = _SCHEDULE.fullmatch(text)
    if named and named[1] in SCHEDULES:
      mean = int(named[2])
      if named[1] == 'decreasing':
        return _Requested(_decreasing(mean, depth, start), False)
      return _Requested((mean,) * depth, False)
    merge = text
  if isinstance(merge, Iterable) and not isinstance(merge, str):
    each = tuple(_count(value, merge) for value in merge)
    if len(each) != depth:
      raise ModelError(
        f'merge: {len(each)} numbers for {depth} blocks; give one number for '
        'all, or one per block'
      )
    return _Requested(each, True)
  return _Requested((_count(merge, merge),) * depth, False)


def _count(value: Any, merge: Any) -> int:
  text = str(value).strip()
  if isinstance(value, bool) or not _INTEGER.fullmatch(text):
    raise ModelError(
      f'merge={merge!r}: give the tokens that each block merges (8), a list '
      'with one number per block, constant:8 or decreasing:8'
    )
  return int(text)


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
