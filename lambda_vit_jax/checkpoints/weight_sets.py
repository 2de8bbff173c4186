"""Find the network's arrays in a file: wrappers, prefixes, several sets.

A training checkpoint is a tree of names. `#NAME` after a path chooses the
weights under one of them, as in `run.pth#teacher.backbone`; without it there
has to be only one set of weights.
"""

import collections
import itertools
import logging
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from lambda_vit_jax.checkpoints.layout_tables import LAYOUTS
from lambda_vit_jax.checkpoints.layouts import Layout, nearest_layout
from lambda_vit_jax.checkpoints.weight_file import WeightFile
from lambda_vit_jax.core.errors import CheckpointError

_LOG = logging.getLogger(__name__)

# Share of a set's names that a layout has to have for it to be a network.
_SHARE = 0.5

# Sets of weights nest at most so deep: `callbacks.ema.state_dict`.
_DEEPEST = 4

_MOST_SHOWN = 3


def entry(loaded: Any, where: str, chosen: str = '') -> tuple[Any, str]:
  """The state dict within what was loaded.

  Args:
    loaded: names to tensors, or a tree of such mappings and other entries.
    where: for messages, with `#NAME` if a set was chosen.
    chosen: the name of a set, parts joined by dots.

  Returns:
    A mapping of names to tensors, and what is left of `chosen`: a prefix of
    its names.

  Raises:
    CheckpointError: no set of weights, several, or none of that name.
  """
  parts = chosen.split('.') if chosen else []
  while parts and isinstance(loaded, Mapping) and _is_set(loaded.get(parts[0])):
    loaded = loaded[parts.pop(0)]
  if parts and isinstance(loaded, Mapping):
    inner = loaded.get(parts[0])
    if isinstance(inner, Mapping):
      return entry(inner, where, '.'.join(parts[1:]))
  if _is_set(loaded):
    return loaded, '.'.join(parts)
  found = _sets(loaded)
  networks = {name: x for name, x in found.items() if _is_network(x)} or found
  if parts:
    raise _no_such(where, networks)
  if not networks:
    raise CheckpointError(f'{where}: holds no state dict of tensors')
  if len(networks) > 1:
    raise _several(where, networks)
  return next(iter(networks.values())), ''


def _is_set(value: Any) -> bool:
  """Whether this is a mapping of names to tensors or arrays, and not empty."""
  return (
    isinstance(value, Mapping)
    and bool(value)
    and all(hasattr(x, 'shape') and hasattr(x, 'dtype') for x in value.values())
  )


def _sets(loaded: Any, depth: int = 0) -> dict[str, Mapping[str, Any]]:
  """All mappings of names to tensors in a tree, by their place."""
  found: dict[str, Mapping[str, Any]] = {}
  if not isinstance(loaded, Mapping) or depth == _DEEPEST:
    return found
  for key, value in loaded.items():
    if not isinstance(key, str):
      # Optimizers count their parameters.
      continue
    if _is_set(value):
      found[key] = value
    inner = {} if _is_set(value) else _sets(value, depth + 1)
    found |= {f'{key}.{name}': x for name, x in inner.items()}
  return found


def _is_network(names: Collection[str]) -> bool:
  """Whether some layout has most of these names, or a prefix before them."""
  prefix = shared_prefix(names)
  own = [str(name)[len(prefix) :] for name in names]
  return bool(networks_in(own))


def shared_prefix(names: Collection[str]) -> str:
  """What all names begin with, up to a dot or slash: `module.`."""
  if len(names) < 2:
    return ''
  first, last = str(min(names)), str(max(names))
  same = itertools.takewhile(
    lambda pair: pair[0] == pair[1], zip(first, last, strict=False)
  )
  common = ''.join(letter for letter, _ in same)
  return common[: max(common.rfind('.'), common.rfind('/')) + 1]


def networks_in(names: Collection[str], depth: int = 0) -> tuple[str, ...]:
  """Prefixes under which there is a network; '' if it is all of the names."""
  _, count = nearest_layout(names, LAYOUTS)
  if count >= _SHARE * len(names):
    return ('',)
  if depth == _DEEPEST:
    return ()
  groups: dict[str, list[str]] = collections.defaultdict(list)
  for name in names:
    if head := re.match(r'[^./]+[./]', name):
      groups[head[0]].append(name[head.end() :])
  return tuple(
    group + inner
    for group, rest in groups.items()
    if len(rest) > 1
    for inner in networks_in(rest, depth + 1)
  )


def recognised(file: WeightFile, chosen: str = '') -> WeightFile:
  """The file with the layout that it has, and only the arrays that count.

  Args:
    file: an open file with the names that it stores.
    chosen: a prefix, without the dot at its end, that names the set to load.

  Raises:
    CheckpointError: several sets of weights, none of that name, or a set
      beside other arrays.
  """
  prefix = _chosen_prefix(file, chosen) if chosen else ''
  file = renamed(file, prefix)
  shared = shared_prefix(file.shapes)
  if shared:
    names = [name[len(shared) :] for name in file.shapes]
    if _explained(names) > _explained(list(file.shapes)):
      file, prefix = renamed(file, shared), prefix + shared
  networks = networks_in(list(file.shapes))
  if len(networks) > 1:
    raise _several(file.path, [name.rstrip('./') for name in networks])
  if networks and networks[0]:
    raise _beside(file, networks[0])
  layout, known = nearest_layout(file.shapes, LAYOUTS)
  if known < _SHARE * len(file.shapes):
    # Another network; what is missing is said in the names of the usual one.
    return file
  ignored = [name for name in file.shapes if layout.ignores(name)]
  _say(file.path, layout, prefix, ignored)
  return file.without(ignored).with_layout(layout)


def _explained(names: Collection[str]) -> int:
  return nearest_layout(names, LAYOUTS)[1]


def renamed(file: WeightFile, prefix: str) -> WeightFile:
  """The arrays under a prefix, without it."""
  if not prefix:
    return file
  return file.renamed(
    {
      name[len(prefix) :]: name
      for name in file.shapes
      if name.startswith(prefix)
    }
  )


def _chosen_prefix(file: WeightFile, chosen: str) -> str:
  for end in './':
    if any(name.startswith(chosen + end) for name in file.shapes):
      return chosen + end
  networks = [x.rstrip('./') for x in networks_in(list(file.shapes)) if x]
  raise _no_such(file.path, networks)


def _say(
  where: str, layout: Layout, prefix: str, ignored: Collection[str]
) -> None:
  """One line on what was left out, if anything was."""
  parts = []
  if prefix:
    parts.append(f'names are read without their prefix `{prefix}`')
  if ignored:
    parts.append(f'left out {_shown(ignored)}, no part of the network')
  if parts:
    _LOG.warning('%s: %s; %s', where, layout.title, '; '.join(parts))


def _shown(names: Collection[str]) -> str:
  first = ', '.join(str(name)[:60] for name in list(names)[:_MOST_SHOWN])
  left = len(names) - _MOST_SHOWN
  return first + (f' and {left} more' if left > 0 else '')


def _several(where: str, names: Collection[str]) -> CheckpointError:
  return CheckpointError(
    f'{where}: holds {len(names)} sets of weights ({_shown(names)}); choose '
    f'one by its name, as in {_named(where, next(iter(names)))}'
  )


def _no_such(where: str, names: Collection[str]) -> CheckpointError:
  held = f'it holds {_shown(names)}' if names else 'leave the name out'
  return CheckpointError(f'{where}: has no weights under this name; {held}')


def _beside(file: WeightFile, prefix: str) -> CheckpointError:
  others = [name for name in file.shapes if not name.startswith(prefix)]
  alone = _named(file.path, prefix.rstrip('./'))
  return CheckpointError(
    f'{file.path}: has weights under `{prefix}` and beside them '
    f'{_shown(others)}; {alone} loads the former alone'
  )


def _named(where: str, name: str) -> str:
  """`FILE#NAME`, or `FILE#SET.NAME` within a set."""
  return f'{os.path.basename(where)}{"." if "#" in where else "#"}{name}'
