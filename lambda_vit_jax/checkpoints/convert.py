"""Convert parameter names and layouts, by tables of rules.

The one here is of timm's names; `layout_tables` has those of other programs.

A rule maps arrays of the file to one of our parameters. Conversion starts from
the parameters of the model, so that every one of them is filled; an array that
none of them uses is an error. `#` is the block index.
"""

import collections
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.checkpoints import family_names
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.quantization import SCALE

Shape = tuple[int, ...]
_STRIP = 128

# What is before the index of a block in a name.
_BLOCK = r'(?:blocks?\.?|layers?\.|encoder_layer_|encoderblock_)(\d+)'

# Names of each kind in the line of an error; one may stand for many blocks.
_MOST_NAMES = 3

# Characters of that line; with long names it has fewer of them.
_LONGEST = 300


class Transform(NamedTuple):
  """Arrays of a file to a parameter (`decode`), and back (`encode`)."""

  decode: Callable[..., np.ndarray]
  encode: Callable[..., tuple[np.ndarray | None, ...]]
  # Of a parameter that is a part of the array's rows: which part, from 1.
  piece: int = 0


SAME = Transform(lambda x: x, lambda x: (x,))
# [out, in] of torch.nn.Linear <-> [in, out].
LINEAR = Transform(np.transpose, lambda x: (np.transpose(x),))
# [out, in, height, width] of torch.nn.Conv2d <-> [height, width, in, out].
CONV = Transform(
  lambda x: np.transpose(x, (2, 3, 1, 0)),
  lambda x: (np.transpose(x, (3, 2, 0, 1)),),
)
# Scales [out] of an 8-bit weight, shaped so that weight · scale is the matrix.
LINEAR_SCALE = Transform(lambda x: x.reshape(-1), lambda x: (x[:, None],))
CONV_SCALE = Transform(
  lambda x: x.reshape(-1), lambda x: (x[:, None, None, None],)
)
Rules = tuple[tuple[str | tuple[str, ...], str, Transform], ...]

_TIMM_ARRAYS: Rules = (
  ('cls_token', 'cls_token', SAME),
  ('dist_token', 'dist_token', SAME),
  ('reg_token', 'reg_token', SAME),
  ('pos_embed', 'pos_embed', SAME),
  ('blocks.#.ls1.gamma', 'block#/ls1/gamma', SAME),
  ('blocks.#.ls2.gamma', 'block#/ls2/gamma', SAME),
  *((*row, SAME) for row in family_names.ARRAYS),
  ('blocks.#.attn.positions.bias', 'block#/attn/positions/bias', SAME),
  ('blocks.#.attn.mixer.weights', 'block#/attn/mixer/weights', SAME),
)

# Layers with a `weight` and perhaps a `bias`; `SAME` for norms.
_TIMM_LAYERS = (
  ('patch_embed.proj', 'patch_embed', CONV),
  ('norm_pre', 'norm_pre', SAME),
  ('blocks.#.norm1', 'block#/norm1', SAME),
  ('blocks.#.attn.qkv', 'block#/attn/qkv', LINEAR),
  ('blocks.#.attn.proj', 'block#/attn/proj', LINEAR),
  *(
    (f'blocks.#.attn.{name}', f'block#/attn/{name}', LINEAR)
    for name in map_inputs.PROJECTIONS
  ),
  ('blocks.#.norm2', 'block#/norm2', SAME),
  ('blocks.#.mlp.fc1', 'block#/mlp/fc1', LINEAR),
  ('blocks.#.mlp.fc2', 'block#/mlp/fc2', LINEAR),
  ('norm', 'norm', SAME),
  ('fc_norm', 'fc_norm', SAME),
  *((*row, SAME) for row in family_names.NORMS),
  *((*row, LINEAR) for row in family_names.MATRICES),
  ('head', 'head', LINEAR),
  ('head_dist', 'head_dist', LINEAR),
)


def _timm_layer(source: str, target: str, transform: Transform) -> Rules:
  bias = (f'{source}.bias', f'{target}/bias', SAME)
  weight = f'{source}.weight'
  if transform is SAME:
    return (weight, f'{target}/scale', SAME), bias
  scale = LINEAR_SCALE if transform is LINEAR else CONV_SCALE
  return (
    (weight, f'{target}/kernel', transform),
    (f'{weight}_scale', f'{target}/{SCALE}', scale),
    bias,
  )


TIMM: Rules = _TIMM_ARRAYS + tuple(
  itertools.chain.from_iterable(itertools.starmap(_timm_layer, _TIMM_LAYERS))
)
"""timm's names, also those of the original DeiT files.

Of a quantised model each 8-bit `weight` has a `weight_scale`.
"""

TIMM_FLAT: Rules = tuple(
  (re.sub(r'\bls([12])\.gamma', r'gamma_\1', str(source)), target, transform)
  for source, target, transform in TIMM
)
"""timm's names in its classes `Eva` and `Beit`."""


def flatten(tree: Params) -> dict[str, Any]:
  """`{'block00/mlp/fc1/kernel': leaf, …}` in the order of the tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def unflatten(flat: Mapping[str, Any]) -> Params:
  """Inverse of `flatten`."""
  tree: Params = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def source_names(
  path: str, rules: Rules = TIMM
) -> tuple[tuple[str, ...], Transform] | None:
  """Returns the file's arrays for the parameter at `path`, and the transform.

  None for a parameter that the format has no name for. Segmentation decoders
  keep our names.
  """
  if rules in (TIMM, TIMM_FLAT) and path.startswith('decoder/'):
    return (path.replace('/', '.'),), SAME
  block = re.match(r'block(\d+)/', path)
  index = str(int(block[1])) if block else ''
  pattern = f'block#/{path[block.end() :]}' if block else path
  for sources, target, transform in rules:
    if target == pattern:
      sources = (sources,) if isinstance(sources, str) else sources
      return tuple(s.replace('#', index) for s in sources), transform
  return None


def decode(
  shapes: Mapping[str, Shape],
  read: Callable[[str], np.ndarray],
  expected: Params,
  where: str,
  rules: Rules = TIMM,
  hint: str = '',
  place: Callable[[np.ndarray], Any] = lambda array: array,
) -> Params:
  """Converts all arrays of a file to a tree of parameters, strictly.

  Parameters are float32, except 8-bit integers where those are expected.

  Args:
    shapes: name to shape of every array of the file.
    read: returns an array by its name; called once for each.
    expected: tree with the shape of every parameter (arrays or
      `jax.ShapeDtypeStruct`).
    where: the file, for messages.
    rules: `TIMM`, or those of another layout.
    hint: end of the error report, such as what to do.
    place: moves each finished array to its device, so that there are never
      two copies of the whole model.

  Raises:
    CheckpointError: arrays that are missing, unexpected or of a wrong shape
      (all of them in one report), values that are not finite, or floats where
      8-bit integers are expected.
  """
  leaves = flatten(expected)
  plan: dict[str, tuple[tuple[str, ...], Transform]] = {}
  unexpected = dict.fromkeys(shapes)
  missing, wrong = [], []
  for path, leaf in leaves.items():
    found = source_names(path, rules)
    if found is None:
      missing.append(path)
      continue
    plan[path] = names, transform = found
    absent = [name for name in names if name not in shapes]
    missing += absent
    for name in names:
      unexpected.pop(name, None)
    wanted = tuple(leaf.shape)
    if not absent and parameter_shape(shapes, path, rules) != wanted:
      wrong.append(_wrong_shape(shapes, names, transform, wanted))
  report = {
    'missing': grouped(missing),
    'unexpected': grouped(unexpected),
    'wrong shape': wrong,
  }
  if any(report.values()):
    raise _misfit(report, where, hint)
  return unflatten(_converted(plan, leaves, read, where, place))


def _wrong_shape(
  shapes: Mapping[str, Shape],
  names: tuple[str, ...],
  transform: Transform,
  wanted: Shape,
) -> str:
  """Which of a parameter's arrays is not of the shape that it needs."""
  parts = transform.encode(np.broadcast_to(np.float32(0), wanted))
  needed = {
    name: part.shape
    for name, part in zip(names, parts, strict=True)
    if part is not None
  }
  name = next((x for x in needed if shapes[x] != needed[x]), names[0])
  known = name in needed and not transform.piece
  expected = _text(needed[name]) if known else 'another shape'
  return f'{name} is {_text(shapes[name])}, expected {expected}'


def _misfit(
  report: Mapping[str, list[str]], where: str, hint: str
) -> CheckpointError:
  """The error for arrays that are not those of the network.

  Its line has the first names of each kind; its note, which `--debug` shows,
  has all.
  """

  def text(most: int | None) -> str:
    parts = []
    for title, names in report.items():
      shown = ', '.join(names[:most])
      left = len(names) - len(names[:most])
      more = f' and {left} more' if left else ''
      parts += [f'{title}: {shown}{more}'] if names else []
    return '; '.join(parts)

  lines = [f'{where}: {text(n)}{hint}' for n in range(_MOST_NAMES, 0, -1)]
  error = CheckpointError(
    next((x for x in lines if len(x) <= _LONGEST), lines[-1])
  )
  error.add_note(text(None))
  return error


def _converted(
  plan: Mapping[str, tuple[tuple[str, ...], Transform]],
  leaves: Mapping[str, Any],
  read: Callable[[str], np.ndarray],
  where: str,
  place: Callable[[np.ndarray], Any],
) -> dict[str, Any]:
  """Reads and converts the arrays of every parameter; see `decode`."""
  flat: dict[str, Any] = {}
  broken: list[str] = []
  for path, (names, transform) in plan.items():
    integers = leaves[path].dtype == np.int8
    dtype = np.dtype(np.int8 if integers else np.float32)
    # One contiguous copy per parameter; the source can then be freed.
    array = transform.decode(*(np.asarray(read(name)) for name in names))
    if integers and array.dtype != np.int8:
      raise CheckpointError(
        f'{where}: {names[0]} is {array.dtype}, expected int8; export the '
        'model again'
      )
    if not integers and not jnp.issubdtype(array.dtype, jnp.floating):
      raise CheckpointError(
        f'{where}: {names[0]} is {array.dtype}, expected floats; convert the '
        'weights to float32 where they were made'
      )
    array = _contiguous(array, dtype)
    broken += [] if np.isfinite(array).all() else names
    flat[path] = place(array)
  if broken:
    raise CheckpointError(
      f'{where}: NaN or infinite numbers in {", ".join(grouped(broken))}; '
      'the weights are damaged, get the file again'
    )
  return flat


def _contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns a row-major array, copying a transposed one strip by strip.

  The rows of a strip stay in the processor's cache while its columns are
  written, which is three times as fast as numpy's copy of the whole.
  """
  if array.ndim != 2 or array.flags.c_contiguous:
    return np.ascontiguousarray(array, dtype)
  copy = np.empty(array.shape, dtype)
  for start in range(0, array.shape[1], _STRIP):
    strip = slice(start, start + _STRIP)
    copy[:, strip] = array[:, strip]
  return copy


def parameter_shape(
  shapes: Mapping[str, Shape], path: str, rules: Rules = TIMM
) -> Shape | None:
  """The shape of the parameter at `path` in a file with arrays of `shapes`.

  None if its arrays are missing or have a rank that cannot be converted.
  """
  names, transform = source_names(path, rules) or ((), SAME)
  if not names or any(name not in shapes for name in names):
    return None
  zero = np.float32(0)
  try:
    return transform.decode(
      *(np.broadcast_to(zero, shapes[name]) for name in names)
    ).shape
  except ValueError:
    return None


def _text(shape: Shape) -> str:
  return '×'.join(map(str, shape)) or 'a scalar'


def encode(params: Params, rules: Rules = TIMM) -> dict[str, np.ndarray]:
  """Converts a tree of parameters to named arrays, without casting.

  Raises:
    CheckpointError: a parameter that the format has no name for.
  """
  arrays: dict[str, np.ndarray] = {}
  pieces: dict[str, dict[int, np.ndarray]] = collections.defaultdict(dict)
  for path, leaf in flatten(params).items():
    found = source_names(path, rules)
    if found is None:
      raise CheckpointError(f'{path}: this format has no name for it')
    names, transform = found
    parts = transform.encode(np.asarray(leaf))
    for name, part in zip(names, parts, strict=True):
      # None: the array is made from another parameter.
      if part is not None and transform.piece:
        pieces[name][transform.piece] = part
      elif part is not None:
        arrays[name] = np.ascontiguousarray(part)
  for name, rows in pieces.items():
    whole = np.concatenate([rows[index] for index in sorted(rows)])
    # Of transposed parts numpy makes a transposed whole.
    arrays[name] = np.ascontiguousarray(whole)
  return arrays


def grouped(names: Iterable[str]) -> list[str]:
  """Joins the block indices of names: `blocks.{0-2,5}.norm1.bias`."""
  groups: dict[str, list[int]] = collections.defaultdict(list)
  for name in names:
    index = re.search(_BLOCK, name)
    if index:
      name = f'{name[: index.start(1)]}#{name[index.end(1) :]}'
    groups[name] += [int(index[1])] if index else []
  return [
    pattern.replace('#', _ranges(indices)) if indices else pattern
    for pattern, indices in groups.items()
  ]


def _ranges(indices: list[int]) -> str:
  """`{0-2,5}` from [0, 1, 2, 5]; a single index stays as it is."""
  if len(indices) == 1:
    return str(indices[0])
  texts = []
  for _, pairs in itertools.groupby(
    enumerate(sorted(indices)), lambda pair: pair[1] - pair[0]
  ):
    run = [index for _, index in pairs]
    texts.append(f'{run[0]}-{run[-1]}' if run[1:] else str(run[0]))
  return '{' + ','.join(texts) + '}'
