"""Which program's names a weight file has, and which of its arrays count.

A layout is data: rules as in `convert`, and what goes with the names.
`layout_tables` has all of them.
"""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.convert import Rules, Transform
from lambda_vit_jax.core.errors import CheckpointError

Names = dict[str, str | tuple[str, Transform]]


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """The names that one program gives to the arrays of a ViT.

  Attributes:
    title: in messages: `looks like TITLE`.
    rules: see `convert`.
    ignored: regular expressions of arrays that are no part of the network.
    families: starts of the variants that have this layout, if their arrays
      fit others as well.
    fields: of `Variant`, where the program's default is another.
    implied: more of them, where a `config.json` leaves them out.
    config: whose `config.json` is read: `timm`, `transformers` or `OpenCLIP`.
    stock: a variant of the layout, for networks whose sizes are stated.
  """

  title: str
  rules: Rules
  ignored: tuple[str, ...] = ()
  families: tuple[str, ...] = ('',)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  implied: dict[str, Any] = dataclasses.field(default_factory=dict)
  config: str = ''
  stock: str = ''

  @functools.cached_property
  def known(self) -> frozenset[str]:
    """Names of all arrays of the layout, with `#` for the block index."""
    return frozenset(
      name
      for sources, _, _ in self.rules
      for name in ((sources,) if isinstance(sources, str) else sources)
    )

  def has(self, name: str) -> bool:
    """Whether an array is a part of the network."""
    return name in self.known or without_index(name) in self.known

  def ignores(self, name: str) -> bool:
    """Whether an array is known, and no part of the network."""
    return not self.has(name) and any(
      re.fullmatch(pattern, name) for pattern in self.ignored
    )

  def explains(self, name: str) -> bool:
    """Whether the layout has such an array, perhaps one that is ignored."""
    return self.has(name) or self.ignores(name)


def without_index(name: str) -> str:
  """The name with `#` for its first number, which is that of the block."""
  return re.sub(r'(?<=[._])\d+(?=[./])', '#', name, count=1)


def nearest_layout(
  names: Collection[str], layouts: Iterable[Layout]
) -> tuple[Layout, int]:
  """The layout that explains most of the names, the first of equal ones.

  Returns:
    The layout, and the number of names that it explains.
  """
  counts = [(sum(map(x.explains, names)), x) for x in layouts]
  count, layout = max(counts, key=lambda pair: pair[0])
  return layout, count


def renamed(names: Names, base: str = '') -> Rules:
  """The rules of `convert.TIMM` under other names.

  Args:
    names: timm's name of an array or a layer (without `.weight`, `.bias`) to
      the other program's; `{a,b}` is several arrays in place of one; with a
      transform in place of timm's where the layout of the numbers differs.
    base: what `@` in the other program's names is in this file.

  Raises:
    KeyError: a name that timm does not have.
  """
  rules: list[tuple[str | tuple[str, ...], str, Transform]] = []
  unused = set(names)
  for source, target, transform in convert.TIMM:
    if not isinstance(source, str):
      continue
    layer, _, leaf = source.rpartition('.')
    key = source if source in names else layer
    if key not in names or (key == layer and leaf == 'weight_scale'):
      continue
    unused.discard(key)
    other = names[key]
    name, used = (other, transform) if isinstance(other, str) else other
    name = name.replace('@', base)
    parts = _expanded(name if key == source else f'{name}.{leaf}')
    if len(parts) > 1 and isinstance(other, str):
      used = FUSED[transform]
    rules.append((parts if len(parts) > 1 else parts[0], target, used))
  if unused:
    raise KeyError(f'timm has no {", ".join(sorted(unused))}')
  return tuple(rules)


def _expanded(name: str) -> tuple[str, ...]:
  """`a.{b,c}.d` as ('a.b.d', 'a.c.d')."""
  found = re.fullmatch(r'(.*)\{(.*)\}(.*)', name)
  if not found:
    return (name,)
  before, middle, after = found.groups()
  return tuple(before + part + after for part in middle.split(','))


def _joined(*arrays: np.ndarray) -> np.ndarray:
  if len({array.shape for array in arrays}) > 1:
    raise ValueError('arrays of different shapes')
  return np.concatenate(arrays, axis=0)


def _split(array: np.ndarray) -> tuple[np.ndarray, ...]:
  return tuple(np.split(array, 3, axis=0))


FUSED = {
  convert.LINEAR: Transform(
    lambda *qkv: np.transpose(_joined(*qkv)), lambda x: _split(np.transpose(x))
  ),
  convert.SAME: Transform(_joined, _split),
}
"""Query, key and value as arrays of their own, in place of one."""


def _no_bias(bias: np.ndarray) -> tuple[None]:
  if np.any(bias):
    raise CheckpointError(
      'head/bias: is not zero, and this layout has no bias there; export '
      "under timm's names"
    )
  return (None,)


# [embed] <-> [1, 1, embed], [positions, embed] <-> [1, positions, embed].
VECTOR = Transform(lambda x: x[None, None], lambda x: (x[0, 0],))
GRID = Transform(lambda x: x[None], lambda x: (x[0],))
# Of a projection without bias the zeros in its place; by its kernel's shape.
ZERO_PER_ROW = Transform(lambda x: np.zeros(len(x), np.float32), _no_bias)
ZERO_PER_COLUMN = Transform(
  lambda x: np.zeros(x.shape[1], np.float32), _no_bias
)
# Where positions begin with the class token's, but registers have none: it is
# part of the class token, and the first of the positions here is dropped.
CLASS_WITH_POSITION = Transform(
  lambda token, positions: token + positions[:, :1], lambda x: (x, None)
)
POSITIONS_AFTER_CLASS = Transform(
  lambda x: x[:, 1:],
  lambda x: (np.concatenate([np.zeros_like(x[:, :1]), x], axis=1),),
)


def _class_half(kernel: np.ndarray) -> np.ndarray:
  half = kernel.shape[1] // 2
  if np.any(kernel[:, half:]):
    raise CheckpointError(
      'classifier.weight: it reads the mean of the patches beside the class '
      'token, which no head of ours does; load the backbone alone'
    )
  return np.transpose(kernel[:, :half])


# [classes, 2·embed]: of the class token, then of the patches' mean.
CLASS_HALF = Transform(
  _class_half,
  lambda x: (np.concatenate([np.transpose(x), np.zeros_like(x.T)], axis=1),),
)
# [3·embed, embed] of torch.nn.MultiheadAttention: rows of the query, then those
# of key and value, which timm's attention pooling has apart.
QUERY_ROWS = Transform(
  lambda x: np.transpose(x[: x.shape[1]]), lambda x: (np.transpose(x),), 1
)
KEY_VALUE_ROWS = Transform(
  lambda x: np.transpose(x[x.shape[1] :]), lambda x: (np.transpose(x),), 2
)
# The same of a bias [3·embed].
QUERY_BIAS = Transform(lambda x: x[: len(x) // 3], lambda x: (x,), 1)
KEY_VALUE_BIAS = Transform(lambda x: x[len(x) // 3 :], lambda x: (x,), 2)
# Of [3·embed] with keys whose bias counts for nothing: zeros are written there.
MASKED_QUERY_BIAS = Transform(
  lambda x: x[: len(x) // 3],
  lambda x: (np.concatenate([x, np.zeros_like(x)]),),
  1,
)
MASKED_VALUE_BIAS = Transform(lambda x: x[2 * len(x) // 3 :], lambda x: (x,), 2)
