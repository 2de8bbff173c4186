"""Token merging as ONNX operations, the same as `models.token_merging`."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from lambda_vit_jax.models.token_merging import interleaved


class Add(Protocol):
  """`Graph.add`: appends a node and returns the name of its output."""

  def __call__(
    self, operator: str, *inputs: Any, count: int = 1, **attributes: Any
  ) -> Any:
    """See `Graph.add`."""


class Matching(NamedTuple):
  """`models.token_merging.Matching` by names; `kept` is None if none stays."""

  kept: str | None
  merged: str
  into: str


def ones(add: Add, batch: str, tokens: int) -> str:
  """Sizes of tokens before any merging, `[batch, tokens]`.

  Args:
    add: appends to a graph.
    batch: the batch size, `[1]` int64.
    tokens: their number.
  """
  shape = add('Concat', batch, np.asarray([tokens], np.int64), axis=0)
  return add('Expand', np.ones((1, tokens), np.float32), shape)


def merge(
  add: Add,
  x: str,
  sizes: str,
  keys: str,
  *,
  tokens: int,
  count: int,
  leading: int,
) -> tuple[str, str, Matching]:
  """Merges `count` tokens away.

  Args:
    add: appends to a graph.
    x: the stream, `[batch, tokens, embed]`.
    sizes: `[batch, tokens]`.
    keys: `[batch, heads, tokens, head_dim]`.
    tokens: of `x`.
    count: at least 1.
    leading: first tokens, which take no part.

  Returns:
    The stream and the sizes after merging, and the matching.
  """
  num_first = (tokens - leading + 1) // 2
  order, gone, into = _match(add, keys, tokens, count, leading)
  first_sizes, second_sizes = _halves(add, sizes, tokens, leading)
  first, second = _halves(add, x, tokens, leading)
  # [batch, second, r], ones where a token goes.
  numbers = np.arange((tokens - leading) // 2, dtype=np.int64)[:, None]
  links = add('Equal', add('Unsqueeze', into, *_ints([1])), numbers)
  links = add('Cast', links, to=1)

  gone_sizes = _column(add, add('GatherElements', first_sizes, gone, axis=1))
  gained = add('MatMul', links, gone_sizes)
  weighted = add('Mul', _rows(add, first, gone), gone_sizes)
  sums = add('MatMul', links, weighted)
  total = add('Add', _column(add, second_sizes), gained)
  # The weighted mean, as a step from the token itself.
  step = add('Sub', sums, add('Mul', gained, second))
  second = add('Add', second, add('Div', step, total))

  merged, merged_sizes = (
    [add('Slice', name, *_ints([0], [leading], [1]))] for name in (x, sizes)
  )
  kept = None
  if count < num_first:
    kept = _kept(add, order, count, num_first)
    merged.append(_rows(add, first, kept))
    merged_sizes.append(add('GatherElements', first_sizes, kept, axis=1))
  merged.append(second)
  merged_sizes.append(add('Squeeze', total, *_ints([2])))
  return (
    add('Concat', *merged, axis=1),
    add('Concat', *merged_sizes, axis=1),
    Matching(kept, gone, into),
  )


def _match(
  add: Add, keys: str, tokens: int, count: int, leading: int
) -> tuple[str, str, str]:
  """Links each token of the first set to the most similar of the second.

  Returns:
    All places of the first set, strongest link first; the first `count` of
    them; and the places of their partners in the second set.
  """
  keys = add('ReduceMean', keys, axes=[1], keepdims=0)
  norm = add('ReduceL2', keys, axes=[2], keepdims=1)
  tiny = np.finfo(np.float32).tiny
  keys = add('Div', keys, add('Max', norm, np.float32(tiny)))
  first, second = _halves(add, keys, tokens, leading)
  second = add('Transpose', second, perm=[0, 2, 1])
  similarity = add('MatMul', first, second)
  best = add('ReduceMax', similarity, axes=[2], keepdims=0)
  partner = add('ArgMax', similarity, axis=2, keepdims=0)
  num_first = (tokens - leading + 1) // 2
  _, order = add(
    'TopK', best, *_ints([num_first]), count=2, axis=1, largest=1, sorted=1
  )
  gone = add('Slice', order, *_ints([0], [count], [1]))
  return order, gone, add('GatherElements', partner, gone, axis=1)


def _kept(add: Add, order: str, count: int, num_first: int) -> str:
  """Places of the first set that stay, ascending, `[batch, first - count]`."""
  kept = add('Slice', order, *_ints([count], [num_first], [1]))
  kept, _ = add(
    'TopK',
    kept,
    *_ints([num_first - count]),
    count=2,
    axis=1,
    largest=0,
    sorted=1,
  )
  return kept


def _halves(add: Add, x: str, tokens: int, leading: int) -> tuple[str, str]:
  """The first set (even places after the leading tokens), and the second."""
  first, second = (
    add('Slice', x, *_ints([start], [tokens], [1], [2]))
    for start in (leading, leading + 1)
  )
  return first, second


def _column(add: Add, x: str) -> str:
  """`[batch, tokens]` as `[batch, tokens, 1]`."""
  return add('Unsqueeze', x, *_ints([2]))


def _rows(add: Add, x: str, places: str) -> str:
  """Tokens of `x` at `places`, `[batch, places, embed]`."""
  return add('GatherND', x, _column(add, places), batch_dims=1)


def places(
  add: Add, matching: Matching, batch: str, patches: int, count: int
) -> str:
  """`models.token_merging.places`: the new place of each patch token.

  Args:
    add: appends to a graph.
    matching: of `merge`.
    batch: the batch size, `[1]` int64.
    patches: tokens of the image before merging.
    count: tokens that were merged away.

  Returns:
    `[batch, patches]` int64.
  """
  num_first = (patches + 1) // 2
  num_kept = num_first - count

  def numbers(start: int, stop: int) -> str:
    shape = add('Concat', batch, *_ints([stop - start]), axis=0)
    return add('Expand', np.arange(start, stop, dtype=np.int64)[None], shape)

  goal = add('Add', matching.into, np.int64(num_kept))
  source = matching.merged
  if matching.kept is not None:
    goal = add('Concat', numbers(0, num_kept), goal, axis=1)
    source = add('Concat', matching.kept, source, axis=1)
  _, inverse = add(
    'TopK', source, *_ints([num_first]), count=2, axis=1, largest=0, sorted=1
  )
  first = add('GatherElements', goal, inverse, axis=1)
  second = numbers(num_kept, num_kept + patches // 2)
  both = add('Concat', first, second, axis=1)
  return add('Gather', both, interleaved(patches, num_first), axis=1)


def follow(add: Add, owners: str | None, moved: str) -> str:
  """`models.token_merging.follow`."""
  if owners is None:
    return moved
  return add('GatherElements', moved, owners, axis=1)


def spread(add: Add, x: str, owners: str | None) -> str:
  """`models.token_merging.spread`."""
  if owners is None:
    return x
  return _rows(add, x, owners)


def _ints(*values: list[int]) -> list[np.ndarray]:
  return [np.asarray(value, np.int64) for value in values]
