"""Token merging as ONNX operations, the same as `models.token_merging`."""

from typing import Any, NamedTuple

import numpy as np

from lambda_vit_jax.exporters.onnx.layers import Layers
from lambda_vit_jax.models.token_merging import interleaved


class Matching(NamedTuple):
  """`models.token_merging.Matching` by names; `kept` is None if none stays."""

  kept: str | None
  merged: str
  into: str


def ones(layers: Layers, tokens: int) -> str:
  """Sizes of tokens before any merging, `[batch, tokens]`."""
  shape = layers.shape(tokens)
  return layers.add('Expand', np.ones((1, tokens), np.float32), shape)


def merge(
  layers: Layers,
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
    layers: adds to a graph.
    x: the stream, `[batch, tokens, embed]`.
    sizes: `[batch, tokens]`.
    keys: `[batch, heads, tokens, head_dim]`.
    tokens: of `x`.
    count: at least 1.
    leading: first tokens, which take no part.

  Returns:
    The stream and the sizes after merging, and the matching.
  """
  add = layers.add
  num_first = (tokens - leading + 1) // 2
  order, gone, into = _match(layers, keys, tokens, count, leading)
  first_sizes, second_sizes = _halves(layers, sizes, tokens, leading)
  first, second = _halves(layers, x, tokens, leading)
  # [batch, second, r], ones where a token goes.
  numbers = np.arange((tokens - leading) // 2, dtype=np.int64)[:, None]
  links = add('Equal', layers.unsqueeze(into, 1), numbers)
  links = add('Cast', links, to=1)

  gone_sizes = layers.unsqueeze(_gather(layers, first_sizes, gone), 2)
  gained = add('MatMul', links, gone_sizes)
  weighted = add('Mul', _rows(layers, first, gone), gone_sizes)
  sums = add('MatMul', links, weighted)
  total = add('Add', layers.unsqueeze(second_sizes, 2), gained)
  # The weighted mean, as a step from the token itself.
  step = add('Sub', sums, add('Mul', gained, second))
  second = add('Add', second, add('Div', step, total))

  merged, merged_sizes = (
    [layers.slice(name, 0, leading, 1)] for name in (x, sizes)
  )
  kept = None
  if count < num_first:
    kept = layers.slice(order, count, num_first, 1)
    kept, _ = _sorted(layers, kept, num_first - count)
    merged.append(_rows(layers, first, kept))
    merged_sizes.append(_gather(layers, first_sizes, kept))
  merged.append(second)
  merged_sizes.append(layers.squeeze(total, 2))
  return (
    add('Concat', *merged, axis=1),
    add('Concat', *merged_sizes, axis=1),
    Matching(kept, gone, into),
  )


def _match(
  layers: Layers, keys: str, tokens: int, count: int, leading: int
) -> tuple[str, str, str]:
  """Links each token of the first set to the most similar of the second.

  Returns:
    All places of the first set, strongest link first; the first `count` of
    them; and the places of their partners in the second set.
  """
  add = layers.add
  keys = add('ReduceMean', keys, axes=[1], keepdims=0)
  norm = add('ReduceL2', keys, axes=[2], keepdims=1)
  tiny = np.finfo(np.float32).tiny
  keys = add('Div', keys, add('Max', norm, np.float32(tiny)))
  first, second = _halves(layers, keys, tokens, leading)
  second = layers.transpose(second, 0, 2, 1)
  similarity = add('MatMul', first, second)
  best = add('ReduceMax', similarity, axes=[2], keepdims=0)
  partner = add('ArgMax', similarity, axis=2, keepdims=0)
  num_first = (tokens - leading + 1) // 2
  _, order = _sorted(layers, best, num_first, largest=1)
  gone = layers.slice(order, 0, count, 1)
  return order, gone, _gather(layers, partner, gone)


def _sorted(layers: Layers, x: str, count: int, largest: int = 0) -> Any:
  """All `count` values along axis 1 in ascending order, and their places."""
  return layers.add(
    'TopK', x, [count], count=2, axis=1, largest=largest, sorted=1
  )


def _halves(
  layers: Layers, x: str, tokens: int, leading: int
) -> tuple[str, str]:
  """The first set (even places after the leading tokens), and the second."""
  first, second = (
    layers.add('Slice', x, [start], [tokens], [1], [2])
    for start in (leading, leading + 1)
  )
  return first, second


def _gather(layers: Layers, x: str, places: str) -> str:
  """Entries of `x` `[batch, tokens]` at `places`."""
  return layers.add('GatherElements', x, places, axis=1)


def _rows(layers: Layers, x: str, places: str) -> str:
  """Tokens of `x` at `places`, `[batch, places, embed]`."""
  return layers.add('GatherND', x, layers.unsqueeze(places, 2), batch_dims=1)


def places(layers: Layers, matching: Matching, patches: int, count: int) -> str:
  """`models.token_merging.places`: the new place of each patch token.

  Args:
    layers: adds to a graph.
    matching: of `merge`.
    patches: tokens of the image before merging.
    count: tokens that were merged away.

  Returns:
    `[batch, patches]` int64.
  """
  add = layers.add
  num_first = (patches + 1) // 2
  num_kept = num_first - count

  def numbers(start: int, stop: int) -> str:
    shape = layers.shape(stop - start)
    return add('Expand', np.arange(start, stop, dtype=np.int64)[None], shape)

  goal = add('Add', matching.into, np.int64(num_kept))
  source = matching.merged
  if matching.kept is not None:
    goal = add('Concat', numbers(0, num_kept), goal, axis=1)
    source = add('Concat', matching.kept, source, axis=1)
  _, inverse = _sorted(layers, source, num_first)
  first = _gather(layers, goal, inverse)
  second = numbers(num_kept, num_kept + patches // 2)
  both = add('Concat', first, second, axis=1)
  return add('Gather', both, interleaved(patches, num_first), axis=1)


def follow(layers: Layers, owners: str | None, moved: str) -> str:
  """`models.token_merging.follow`."""
  return moved if owners is None else _gather(layers, moved, owners)


def spread(layers: Layers, x: str, owners: str | None) -> str:
  """`models.token_merging.spread`."""
  return x if owners is None else _rows(layers, x, owners)
