"""Token merging as ONNX operations: what `merging` computes."""

from typing import Any, NamedTuple, Protocol

import numpy as np

from lambda_vit_jax.models.token_merging import interleaved


class Add(Protocol):
  """`onnx_graph.Graph.add`: appends a node, returns its output's name."""

  def __call__(
    self, operator: str, *inputs: Any, count: int = 1, **attributes: Any
  ) -> Any:
    """See `onnx_graph.Graph.add`."""


class Matching(NamedTuple):
  """`merging.Matching`, by names of a graph; `kept` is None for no token."""

  kept: str | None
  merged: str
  into: str


def ones(add: Add, batch: str, tokens: int) -> str:
  """Sizes of tokens that stand for themselves, `[batch, tokens]`.

  Args:
    add: appends to a graph.
    batch: the batch size, `[1]` int64.
    tokens: how many there are.
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
    leading: tokens in front that take no part.

  Returns:
    The stream and the sizes of what is left, and what was matched.
  """
  num_first = (tokens - leading + 1) // 2

  def halves(name: str) -> tuple[str, str]:
    first, second = (
      add('Slice', name, *_ints([start], [tokens], [1], [2]))
      for start in (leading, leading + 1)
    )
    return first, second

  keys = add('ReduceMean', keys, axes=[1], keepdims=0)
  norm = add('ReduceL2', keys, axes=[2], keepdims=1)
  tiny = np.finfo(np.float32).tiny
  keys = add('Div', keys, add('Max', norm, np.float32(tiny)))
  first, second = halves(keys)
  second = add('Transpose', second, perm=[0, 2, 1])
  similarity = add('MatMul', first, second)
  best = add('ReduceMax', similarity, axes=[2], keepdims=0)
  partner = add('ArgMax', similarity, axis=2, keepdims=0)
  _, order = add(
    'TopK', best, *_ints([num_first]), count=2, axis=1, largest=1, sorted=1
  )
  gone = add('Slice', order, *_ints([0], [count], [1]))
  into = add('GatherElements', partner, gone, axis=1)

  first_sizes, second_sizes = halves(sizes)
  first, second = halves(x)
  # [batch, second, r], ones where a token goes.
  places = np.arange((tokens - leading) // 2, dtype=np.int64)[:, None]
  links = add('Equal', add('Unsqueeze', into, *_ints([1])), places)
  links = add('Cast', links, to=1)

  def column(name: str) -> str:
    return add('Unsqueeze', name, *_ints([2]))

  def rows(places: str) -> str:
    return add('GatherND', first, column(places), batch_dims=1)

  def of_first(places: str) -> str:
    return add('GatherElements', first_sizes, places, axis=1)

  gone_sizes = column(of_first(gone))
  gained = add('MatMul', links, gone_sizes)
  sums = add('MatMul', links, add('Mul', rows(gone), gone_sizes))
  total = add('Add', column(second_sizes), gained)
  step = add('Sub', sums, add('Mul', gained, second))
  second = add('Add', second, add('Div', step, total))

  in_front, their_sizes = (
    add('Slice', name, *_ints([0], [leading], [1])) for name in (x, sizes)
  )
  merged, merged_sizes = [in_front], [their_sizes]
  kept = None
  if count < num_first:
    left = num_first - count
    kept = add('Slice', order, *_ints([count], [num_first], [1]))
    kept, _ = add(
      'TopK', kept, *_ints([left]), count=2, axis=1, largest=0, sorted=1
    )
    merged.append(rows(kept))
    merged_sizes.append(of_first(kept))
  merged.append(second)
  merged_sizes.append(add('Squeeze', total, *_ints([2])))
  return (
    add('Concat', *merged, axis=1),
    add('Concat', *merged_sizes, axis=1),
    Matching(kept, gone, into),
  )


def places(
  add: Add, matching: Matching, batch: str, patches: int, count: int
) -> str:
  """`merging.places`: where each patch token has gone.

  Args:
    add: appends to a graph.
    matching: of `merge`.
    batch: the batch size, `[1]` int64.
    patches: tokens of the image before.
    count: of them that were merged away.

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
  """`merging.follow`."""
  if owners is None:
    return moved
  return add('GatherElements', moved, owners, axis=1)


def spread(add: Add, x: str, owners: str | None) -> str:
  """`merging.spread`."""
  if owners is None:
    return x
  return add('GatherND', x, add('Unsqueeze', owners, *_ints([2])), batch_dims=1)


def _ints(*values: list[int]) -> list[np.ndarray]:
  return [np.asarray(value, np.int64) for value in values]
