"""Merge similar tokens by bipartite soft matching (token merging).

Written from the paper (Bolya et al., "Token Merging: Your ViT But Faster",
arXiv 2210.09461). After an attention layer, the image's tokens are assigned
alternately to two sets. Each token of the first set is linked to the token of
the second whose key (the mean over heads) has the largest cosine similarity.
Along the r strongest links, tokens are merged into their mean, weighted by size,
the number of patches in each. Leading tokens (class, distillation, registers)
are never merged. Shapes depend on r alone, which is static.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
_take = functools.partial(jnp.take_along_axis, mode='promise_in_bounds')


class Matching(NamedTuple):
  """Which patch tokens merge: `first` has the even positions, `second` the odd.

  Attributes:
    kept: positions in `first` that stay, ascending, `[..., first - r]`.
    merged: positions in `first` that go, strongest link first, `[..., r]`.
    into: the positions in `second` that they merge into, `[..., r]`.
  """

  kept: Array
  merged: Array
  into: Array


def match(keys: Array, count: int, leading: int) -> Matching:
  """Bipartite soft matching; no gradient flows through the choice.

  Args:
    keys: one vector per token, `[..., tokens, channels]`.
    count: r, the number of tokens that go; static, at most half of the patches.
    leading: leading tokens, which are never merged.
  """
  wide = _wide(keys.dtype)
  keys = jax.lax.stop_gradient(keys[..., leading:, :]).astype(wide)
  norm = jnp.sqrt((keys * keys).sum(axis=-1, keepdims=True))
  # A zero key has similarity 0 to all.
  keys = keys / jnp.maximum(norm, jnp.finfo(wide).tiny)
  first, second = keys[..., ::2, :], keys[..., 1::2, :]
  similarity = _einsum('...ac,...bc->...ab', first, second)
  # Stable: on a tie the lower position comes first.
  order = jnp.argsort(-similarity.max(axis=-1), axis=-1, stable=True)
  merged = order[..., :count]
  into = _take(similarity.argmax(axis=-1), merged, axis=-1)
  return Matching(jnp.sort(order[..., count:], axis=-1), merged, into)


def merge(
  x: Array, sizes: Array | None, matching: Matching, leading: int
) -> tuple[Array, Array]:
  """Merges tokens into the mean over their patches.

  Args:
    x: `[..., tokens, embed]`.
    sizes: patches in each token, `[..., tokens]`; None for one each.
    matching: of these tokens.
    leading: leading tokens, which stay as they are.

  Returns:
    The tokens `[..., tokens - r, embed]`: the leading ones, those of `first`
    that stay, then `second`; and their sizes, whose sum does not change.
  """
  if sizes is None:
    sizes = jnp.ones(x.shape[:-1], _wide(x.dtype))
  even, odd = slice(leading, None, 2), slice(leading + 1, None, 2)
  first, second = x[..., even, :], x[..., odd, :]
  first_sizes, second_sizes = sizes[..., even], sizes[..., odd]
  gone = matching.merged
  gone_sizes = _take(first_sizes, gone, axis=-1)
  # A product with zeros and ones instead of a scatter, which CPUs and
  # accelerators alike execute row by row.
  into = jax.nn.one_hot(matching.into, second.shape[-2], dtype=sizes.dtype)
  gained = _einsum('...rb,...r->...b', into, gone_sizes)
  lost = _take(first, gone[..., None], axis=-2).astype(sizes.dtype)
  sums = _einsum('...rb,...rc->...bc', into, gone_sizes[..., None] * lost)
  # The weighted mean as an update of the token: a token that gains nothing
  # keeps its exact value.
  wide = second.astype(sizes.dtype)
  step = sums - gained[..., None] * wide
  total = second_sizes + gained
  merged = (wide + step / total[..., None]).astype(x.dtype)
  first = _take(first, matching.kept[..., None], axis=-2)
  first_sizes = _take(first_sizes, matching.kept, axis=-1)
  tokens = [x[..., :leading, :], first, merged]
  new_sizes = [sizes[..., :leading], first_sizes, total]
  return jnp.concatenate(tokens, axis=-2), jnp.concatenate(new_sizes, axis=-1)


def places(matching: Matching, patches: int) -> Array:
  """The position after `merge` of each patch token, among the patch tokens.

  Args:
    matching: of these tokens.
    patches: number of patch tokens before.

  Returns:
    `[..., patches]` int32, below `patches - r`.
  """
  # After merging: `kept` of the first set, then the second set.
  *lead, num_kept = matching.kept.shape
  left = num_kept + patches // 2
  kept, second = jnp.split(
    jnp.broadcast_to(jnp.arange(left), (*lead, left)), [num_kept], axis=-1
  )
  source = jnp.concatenate([matching.kept, matching.merged], axis=-1)
  goal = jnp.concatenate([kept, num_kept + matching.into], axis=-1)
  first = _take(goal, jnp.argsort(source, axis=-1), axis=-1)
  both = jnp.concatenate([first, second], axis=-1).astype(jnp.int32)
  return both[..., interleaved(patches, source.shape[-1])]


def interleaved(patches: int, num_first: int) -> np.ndarray:
  """Position of each patch token if the first set precedes the second."""
  index = np.arange(patches)
  return index // 2 + index % 2 * num_first


def follow(owners: Array | None, moved: Array) -> Array:
  """The token that each patch is part of, after one more merging.

  Args:
    owners: the same before it, `[..., patches]`; None if nothing has been
      merged yet.
    moved: `places` of the tokens.
  """
  return moved if owners is None else _take(moved, owners, axis=-1)


def spread(x: Array, owners: Array | None) -> Array:
  """Undoes merging: each patch gets the token that it is part of.

  Args:
    x: patch tokens, `[..., tokens, embed]`.
    owners: `[..., patches]`, of `follow`; None if nothing has been merged.

  Returns:
    `[..., patches, embed]`.
  """
  return x if owners is None else _take(x, owners[..., None], axis=-2)


def weighted_mean(x: Array, sizes: Array | None) -> Array:
  """The mean over tokens, weighted by their number of patches.

  Args:
    x: `[..., tokens, embed]`.
    sizes: `[..., tokens]`; None for the plain mean.
  """
  if sizes is None:
    return x.mean(axis=-2)
  wide = x.astype(sizes.dtype)
  total = (wide * sizes[..., None]).sum(axis=-2)
  return (total / sizes.sum(axis=-1, keepdims=True)).astype(x.dtype)


def _wide(dtype: Any) -> Any:
  """Dtype of similarities and sums: float32, or float64 for float64."""
  return jnp.float64 if dtype == jnp.float64 else jnp.float32
