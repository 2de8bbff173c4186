"""Convert parameter names and layouts: a table for timm, one for Google.

A rule maps arrays of the file to one of our parameters. Conversion starts from
the parameters of the model, so that every one of them is filled; an array that
none of them uses is an error. `#` is the block index.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models.quantization import SCALE

Shape = tuple[int, ...]

_STRIP = 128


@dataclasses.dataclass(frozen=True)
class Transform:
  """Arrays of a file to a parameter (`decode`), and back (`encode`)."""

  decode: Callable[..., np.ndarray]
  encode: Callable[..., tuple[np.ndarray, ...]]


def _three(array: np.ndarray, shape: Callable[[int], Shape]) -> tuple:
  """Splits a fused array into q, k and v with an axis for heads.

  The array does not record the number of heads; it is written as 1.
  """
  parts = np.split(array, 3, axis=-1)
  return tuple(part.reshape(shape(part.shape[-1])) for part in parts)


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
# [embed, heads, head_dim] each for query, key, value <-> [embed, 3·embed].
QKV_KERNEL = Transform(
  lambda *qkv: np.concatenate([x.reshape(len(x), -1) for x in qkv], axis=1),
  lambda x: _three(x, lambda width: (len(x), 1, width)),
)
# [heads, head_dim] each <-> [3·embed].
QKV_BIAS = Transform(
  lambda *qkv: np.concatenate([x.reshape(-1) for x in qkv]),
  lambda x: _three(x, lambda width: (1, width)),
)
# [heads, head_dim, embed] <-> [embed, embed].
OUT_KERNEL = Transform(
  lambda x: x.reshape(-1, x.shape[-1]), lambda x: (x[None],)
)

Rules = tuple[tuple[str | tuple[str, ...], str, Transform], ...]

_TIMM: Rules = (
  ('cls_token', 'cls_token', SAME),
  ('dist_token', 'dist_token', SAME),
  ('reg_token', 'reg_token', SAME),
  ('pos_embed', 'pos_embed', SAME),
  ('patch_embed.proj.weight', 'patch_embed/kernel', CONV),
  ('patch_embed.proj.bias', 'patch_embed/bias', SAME),
  ('norm_pre.weight', 'norm_pre/scale', SAME),
  ('norm_pre.bias', 'norm_pre/bias', SAME),
  ('blocks.#.norm1.weight', 'block#/norm1/scale', SAME),
  ('blocks.#.norm1.bias', 'block#/norm1/bias', SAME),
  ('blocks.#.attn.qkv.weight', 'block#/attn/qkv/kernel', LINEAR),
  ('blocks.#.attn.qkv.bias', 'block#/attn/qkv/bias', SAME),
  ('blocks.#.attn.proj.weight', 'block#/attn/proj/kernel', LINEAR),
  ('blocks.#.attn.proj.bias', 'block#/attn/proj/bias', SAME),
  ('blocks.#.attn.linear.weight', 'block#/attn/linear/kernel', LINEAR),
  ('blocks.#.attn.linear.bias', 'block#/attn/linear/bias', SAME),
  ('blocks.#.attn.mean.weight', 'block#/attn/mean/kernel', LINEAR),
  (
    'blocks.#.attn.class_linear.weight',
    'block#/attn/class_linear/kernel',
    LINEAR,
  ),
  ('blocks.#.attn.class_linear.bias', 'block#/attn/class_linear/bias', SAME),
  ('blocks.#.attn.class_mean.weight', 'block#/attn/class_mean/kernel', LINEAR),
  ('blocks.#.ls1.gamma', 'block#/ls1/gamma', SAME),
  ('blocks.#.norm2.weight', 'block#/norm2/scale', SAME),
  ('blocks.#.norm2.bias', 'block#/norm2/bias', SAME),
  ('blocks.#.mlp.fc1.weight', 'block#/mlp/fc1/kernel', LINEAR),
  ('blocks.#.mlp.fc1.bias', 'block#/mlp/fc1/bias', SAME),
  ('blocks.#.mlp.fc2.weight', 'block#/mlp/fc2/kernel', LINEAR),
  ('blocks.#.mlp.fc2.bias', 'block#/mlp/fc2/bias', SAME),
  ('blocks.#.ls2.gamma', 'block#/ls2/gamma', SAME),
  ('norm.weight', 'norm/scale', SAME),
  ('norm.bias', 'norm/bias', SAME),
  ('fc_norm.weight', 'fc_norm/scale', SAME),
  ('fc_norm.bias', 'fc_norm/bias', SAME),
  ('head.weight', 'head/kernel', LINEAR),
  ('head.bias', 'head/bias', SAME),
  ('head_dist.weight', 'head_dist/kernel', LINEAR),
  ('head_dist.bias', 'head_dist/bias', SAME),
)

TIMM: Rules = _TIMM + tuple(
  (
    f'{source}_scale',
    f'{target.removesuffix("kernel")}{SCALE}',
    LINEAR_SCALE if transform is LINEAR else CONV_SCALE,
  )
  for source, target, transform in _TIMM
  if target.endswith('kernel')
)
"""timm's names, also those of the original DeiT files.

Of a quantised model each 8-bit `weight` has a `weight_scale`.
"""

_GOOGLE_BLOCK = 'Transformer/encoderblock_#'
_GOOGLE_MIXER = f'{_GOOGLE_BLOCK}/MultiHeadDotProductAttention_1'
_GOOGLE_MLP = f'{_GOOGLE_BLOCK}/MlpBlock_3'


def _google_qkv(leaf: str) -> tuple[str, ...]:
  return tuple(f'{_GOOGLE_MIXER}/{p}/{leaf}' for p in ('query', 'key', 'value'))


GOOGLE: Rules = (
  ('cls', 'cls_token', SAME),
  ('Transformer/posembed_input/pos_embedding', 'pos_embed', SAME),
  ('embedding/kernel', 'patch_embed/kernel', SAME),
  ('embedding/bias', 'patch_embed/bias', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_0/scale', 'block#/norm1/scale', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_0/bias', 'block#/norm1/bias', SAME),
  (_google_qkv('kernel'), 'block#/attn/qkv/kernel', QKV_KERNEL),
  (_google_qkv('bias'), 'block#/attn/qkv/bias', QKV_BIAS),
  (f'{_GOOGLE_MIXER}/out/kernel', 'block#/attn/proj/kernel', OUT_KERNEL),
  (f'{_GOOGLE_MIXER}/out/bias', 'block#/attn/proj/bias', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_2/scale', 'block#/norm2/scale', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_2/bias', 'block#/norm2/bias', SAME),
  (f'{_GOOGLE_MLP}/Dense_0/kernel', 'block#/mlp/fc1/kernel', SAME),
  (f'{_GOOGLE_MLP}/Dense_0/bias', 'block#/mlp/fc1/bias', SAME),
  (f'{_GOOGLE_MLP}/Dense_1/kernel', 'block#/mlp/fc2/kernel', SAME),
  (f'{_GOOGLE_MLP}/Dense_1/bias', 'block#/mlp/fc2/bias', SAME),
  ('Transformer/encoder_norm/scale', 'norm/scale', SAME),
  ('Transformer/encoder_norm/bias', 'norm/bias', SAME),
  ('head/kernel', 'head/kernel', SAME),
  ('head/bias', 'head/bias', SAME),
)
"""Names of Google's `.npz` files (AugReg, vision_transformer)."""


def flatten(tree: Params) -> dict[str, Any]:
  """`{'block00/mlp/fc1/kernel': leaf, …}` in the order of the tree."""
  leaves, _ = jax.tree.flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
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
  if rules is TIMM and path.startswith('decoder/'):
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
    rules: `TIMM` or `GOOGLE`.
    hint: end of the error report, such as what to do.
    place: moves each finished array to its device, so that there are never
      two copies of the whole model.

  Raises:
    CheckpointError: arrays that are missing, unexpected or of a wrong shape
      (all of them in one report), values that are not finite, or floats where
      8-bit integers are expected.
  """
  plan: dict[str, tuple[tuple[str, ...], Transform, np.dtype]] = {}
  used: set[str] = set()
  missing, wrong = [], []
  for path, leaf in flatten(expected).items():
    found = source_names(path, rules)
    if found is None:
      missing.append(path)
      continue
    names, transform = found
    used.update(names)
    absent = [name for name in names if name not in shapes]
    missing += absent
    if absent:
      continue
    problem = _shape_problem(names, shapes, transform, tuple(leaf.shape))
    wrong += [problem] if problem else []
    integers = np.dtype(leaf.dtype) == np.int8
    plan[path] = names, transform, np.dtype(np.int8 if integers else np.float32)
  unexpected = [name for name in shapes if name not in used]
  report = [
    f'{title}: {", ".join(grouped(names))}'
    for title, names in (('missing', missing), ('unexpected', unexpected))
    if names
  ]
  report += [f'wrong shape: {", ".join(wrong)}'] if wrong else []
  if report:
    raise CheckpointError(f'{where}: {"; ".join(report)}{hint}')

  flat: dict[str, Any] = {}
  broken: list[str] = []
  for path, (names, transform, dtype) in plan.items():
    # One contiguous copy per parameter; the source can then be freed.
    array = transform.decode(*(np.asarray(read(name)) for name in names))
    if dtype == np.int8 and array.dtype != np.int8:
      raise CheckpointError(
        f'{where}: {names[0]} is {array.dtype}, expected int8; export the '
        'model again'
      )
    array = _contiguous(array, dtype)
    broken += [] if np.isfinite(array).all() else names
    flat[path] = place(array)
  if broken:
    raise CheckpointError(
      f'{where}: NaN or infinite numbers in {", ".join(grouped(broken))}; '
      'the weights are damaged, get the file again'
    )
  return unflatten(flat)


def _contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns a row-major array, copying a transposed one strip by strip.

  The rows of a strip stay in the processor's cache while its columns are
  written, which is three times as fast as numpy's copy of the whole.
  """
  if array.ndim != 2 or array.flags.c_contiguous:
    return np.ascontiguousarray(array, dtype)
  rows_of_source = array.T
  copy = np.empty(array.shape, dtype)
  for start in range(0, len(rows_of_source), _STRIP):
    stop = start + _STRIP
    copy[:, start:stop] = rows_of_source[start:stop].T
  return copy


def _shape_problem(
  names: tuple[str, ...],
  shapes: Mapping[str, Shape],
  transform: Transform,
  wanted: Shape,
) -> str:
  """What is wrong with the shape of a parameter's sources, or ''."""
  try:
    sources = [np.broadcast_to(np.float32(0), shapes[name]) for name in names]
    if transform.decode(*sources).shape == wanted:
      return ''
  except ValueError:
    # A rank that the transform cannot take: reported like any other shape.
    pass
  encoded = transform.encode(np.broadcast_to(np.float32(0), wanted))
  found = shapes[names[0]]
  return f'{names[0]} is {_text(found)}, expected {_text(encoded[0].shape)}'


def _text(shape: Shape) -> str:
  return '×'.join(map(str, shape)) or 'a scalar'


def encode(params: Params, rules: Rules = TIMM) -> dict[str, np.ndarray]:
  """Converts a tree of parameters to named arrays, without casting.

  Raises:
    CheckpointError: a parameter that the format has no name for.
  """
  arrays: dict[str, np.ndarray] = {}
  for path, leaf in flatten(params).items():
    found = source_names(path, rules)
    if found is None:
      raise CheckpointError(f'{path}: this format has no name for it')
    names, transform = found
    parts = transform.encode(np.asarray(leaf))
    for name, part in zip(names, parts, strict=True):
      arrays[name] = np.ascontiguousarray(part)
  return arrays


def grouped(names: Iterable[str]) -> list[str]:
  """Joins the block indices of names: `blocks.{0-2,5}.norm1.bias`."""
  groups: dict[str, list[int]] = {}
  for name in names:
    index = re.search(r'(?:blocks\.|encoderblock_|block)(\d+)', name)
    if index is None:
      groups.setdefault(name, [])
      continue
    pattern = f'{name[: index.start(1)]}#{name[index.end(1) :]}'
    groups.setdefault(pattern, []).append(int(index[1]))
  return [
    pattern.replace('#', _ranges(indices)) if indices else pattern
    for pattern, indices in groups.items()
  ]


def _ranges(indices: list[int]) -> str:
  """`{0-2,5}` from [0, 1, 2, 5]; a single index stays as it is."""
  if len(indices) == 1:
    return str(indices[0])
  runs: list[list[int]] = []
  for index in sorted(indices):
    if runs and index == runs[-1][-1] + 1:
      runs[-1].append(index)
    else:
      runs.append([index])
  texts = [f'{run[0]}-{run[-1]}' if run[1:] else str(run[0]) for run in runs]
  return '{' + ','.join(texts) + '}'
