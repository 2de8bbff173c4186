"""Read a weight file of timm, DeiT or Google (or ours) into a `Model`.

Finds out the variant and the image size; every array has to be used.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath

from lambda_vit_jax.checkpoints import (
  config_files,
  convert,
  description,
  infer,
  readers,
)
from lambda_vit_jax.checkpoints.layout_tables import TIMM
from lambda_vit_jax.checkpoints.weight_file import WeightFile
from lambda_vit_jax.core.errors import CheckpointError, LambdaVitError
from lambda_vit_jax.models import edits
from lambda_vit_jax.models.build import (
  abstract_params,
  make_module,
  with_mlp_dims,
)
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import ATTENTION_PARTS, block_name
from lambda_vit_jax.models.variants import (
  VARIANTS,
  Variant,
  get_variant,
  tags,
)

_LOG = logging.getLogger(__name__)


def check_variant(model: Model, variant: str | None, where: str) -> Model:
  """Returns `model` if it is of the variant asked for.

  Raises:
    CheckpointError: it is of another.
  """
  if variant is not None and get_variant(variant).name != model.variant:
    raise CheckpointError(
      f'{where}: holds a {model.variant}, not a {variant}; leave the variant '
      'out, or choose other weights'
    )
  return model


def load_folder(path: epath.Path, variant: str | None) -> Model:
  """Loads a folder with one weight file and perhaps a `config.json`.

  A sharded file counts as one, by its index.

  Raises:
    CheckpointError: no weight file, or several; see `load_file`.
  """
  every = sorted(path.iterdir())
  present = {file.name for file in every}
  # Of what is whole in one file, nobody reads an old index.
  indices = [
    file
    for file in every
    if file.name.endswith(readers.INDEX)
    and file.name.removesuffix('.index.json') not in present
  ]
  files = indices or [
    file for file in every if file.name.endswith(readers.SUFFIXES)
  ]
  if not files:
    raise CheckpointError(
      f'{path}: holds no weight file ({", ".join(readers.SUFFIXES)}), no '
      'export and no run'
    )
  if len(files) > 1:
    names = ', '.join(file.name for file in files)
    raise CheckpointError(
      f'{path}: holds {len(files)} weight files ({names}); name the one to load'
    )
  readers.check_link(files[0])
  return load_file(files[0], variant)


def load_file(path: epath.Path, variant: str | None, chosen: str = '') -> Model:
  """Loads one weight file, at its own image size and with its own head.

  Args:
    path: a local or a remote file.
    variant: by default found out.
    chosen: which of several sets of weights, see `weight_sets`.

  Raises:
    CheckpointError: damaged, of an unknown or ambiguous variant, or not
      exactly the arrays that the variant has.
  """
  with _local(path) as local, readers.open_weights(local, chosen) as file:
    file = dataclasses.replace(file, path=str(path))
    if file.description is not None:
      own = description.rebuild(file.description, str(path))
      own = check_variant(own, variant, str(path))
      hint = '; the file is damaged, export the model again'
      if file.description.get('zero_filled'):
        return _without_zeros(own, file, hint)
      return _filled(own, file, hint)
    return load_weights(file, _variant_of(path, file, variant))


def load_weights(
  file: WeightFile,
  spec: Variant,
  image_size: int | Sequence[int] | None = None,
) -> Model:
  """The model of another program's arrays.

  Args:
    file: an open file, or a state dict in memory.
    spec: what the arrays are of.
    image_size: that of the weights; by default from the number of positions.

  Raises:
    CheckpointError: not exactly the arrays that the variant has.
  """
  file = _without_old_head(file)
  own = _model_of(spec, file, image_size)
  others = [
    name
    for name in infer.candidates(file.shapes, file.rules)
    if name != spec.name
  ]
  hint = f'; its arrays fit {", ".join(others)}' if others else ''
  return _filled(own, file, hint)


def _filled(own: Model, file: WeightFile, hint: str) -> Model:
  """`own` with the arrays of the file as parameters; see `convert.decode`."""
  foreign = '' if file.layout is TIMM else f' ({file.layout.title})'
  params = convert.decode(
    file.shapes,
    file.read,
    own.params,
    f'{file.path} as {own.variant}{foreign}',
    file.rules,
    hint,
    place=jnp.asarray,
  )
  return own.replace(params=params)


@contextlib.contextmanager
def _local(path: epath.Path) -> Iterator[pathlib.Path]:
  """The file where it is, or a copy of a remote one while it is read."""
  if '://' not in str(path):
    yield pathlib.Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / path.name
    with path.open('rb') as source, copy.open('wb') as target:
      shutil.copyfileobj(source, target)
    yield copy


def _variant_of(
  path: epath.Path, file: WeightFile, variant: str | None
) -> Variant:
  """The variant given, or found out, as the files beside it change it."""
  found, stated = config_files.read_beside(path.parent, file.layout, variant)
  if found is not None:
    where = str(path.parent / 'config.json')
    spec = described(found, stated, variant, where)
  else:
    spec = get_variant(variant or infer.infer_variant(file, stated))
  return as_stated(spec, file, stated)


def as_stated(
  spec: Variant, file: WeightFile, stated: Mapping[str, Any]
) -> Variant:
  """A variant with the fields that a file's layout and its neighbours state."""
  if 'pooling' not in stated:
    spec = pooled(spec, file)
  return dataclasses.replace(spec, **stated)


def described(
  found: str, stated: Mapping[str, Any], variant: str | None, where: str
) -> Variant:
  """The variant that a `config.json` names.

  Args:
    found: the architecture, perhaps with a tag.
    stated: fields that it sets.
    variant: the one that was asked for, if any.
    where: the file, for messages.

  Raises:
    CheckpointError: an unknown architecture, or another than was asked for.
  """
  base, _, tag = found.partition('.')
  known = found in VARIANTS or (base in VARIANTS and tag in tags(base))
  try:
    named = get_variant(found if known else base)
    wanted = named if variant is None else get_variant(variant)
  except LambdaVitError as error:
    raise CheckpointError(f'{where}: {error}') from None
  if wanted.name.partition('.')[0] != base:
    raise CheckpointError(
      f'{where}: describes a {found}, not a {variant}; leave the variant out, '
      'or choose other weights'
    )
  if variant is not None and '.' in variant:
    return wanted
  if not known and not {'mean', 'std'} <= set(stated):
    _LOG.warning(
      '%s: gives no mean and std of the images, and no known tag of the '
      'weights; those of %s are taken: mean %s, std %s',
      where,
      base,
      named.mean,
      named.std,
    )
  return dataclasses.replace(named, name=wanted.name)


def pooled(spec: Variant, file: WeightFile) -> Variant:
  """The variant with average pooling, where the file's final norm says so.

  `fc_norm` acts behind the pooling. timm and MAE have it with the mean of the
  patches only, unless a `config.json` states something else.
  """
  found = convert.parameter_shape(file.shapes, 'fc_norm/scale', file.rules)
  if found is None or not spec.norm_before_pool or spec.distilled:
    return spec
  _LOG.warning(
    '%s: has `fc_norm` in place of `norm`, so it is read as a network with '
    'average pooling; a config.json with global_pool beside it can say '
    'otherwise',
    file.path,
  )
  return dataclasses.replace(spec, pooling='avg', norm_before_pool=False)


def _model_of(
  spec: Variant, file: WeightFile, image_size: int | Sequence[int] | None
) -> Model:
  """The model of another program's file, with shapes for parameters.

  Raises:
    CheckpointError: what is beside the file gives `mean` or `std` alone, for
      another number of channels than that of the other.
  """
  if len(spec.std) != len(spec.mean):
    raise CheckpointError(
      f'{file.path}: images have {len(spec.mean)} channels by their mean and '
      f'{len(spec.std)} by their std; correct the configuration beside it'
    )
  shape = functools.partial(
    convert.parameter_shape, file.shapes, rules=file.rules
  )
  head = shape('head/kernel')
  module = make_module(
    spec,
    num_classes=head[1] if head else 0,
    image_size=image_size or _image_size(spec, infer.num_patches(spec, shape)),
  )
  return Model(
    module=module,
    params=abstract_params(module),
    variant=spec.name,
    preprocessing=spec.preprocessing(module.image_size),
  )


def _image_size(spec: Variant, patches: int | None) -> int:
  """Image size from the number of patches: square, else the variant's."""
  if patches is None:
    return spec.image_size
  side = math.isqrt(max(patches, 1))
  return side * spec.patch_size if side**2 == patches else spec.image_size


def _without_zeros(own: Model, file: WeightFile, hint: str) -> Model:
  """`own` without the zeros that stand for what it lacks (zero_fill)."""
  module = with_mlp_dims(own.module, ())
  full = own.replace(module=module, params=abstract_params(module))
  full = _filled(full, _without_attention(file, own), hint)
  kept = dict(enumerate(map(range, own.mlp_dims)))
  for index, width in enumerate(own.mlp_dims):
    second = (
      full.params.get(block_name(index), {}).get('mlp', {}).get('fc2', {})
    )
    if second and second['kernel'][width:].any():
      raise CheckpointError(
        f'{file.path}: mlp.fc2 of block {index} is not zero beyond the '
        f'{width} neurons that are described; export the model again'
      )
  return edits.narrow_mlps(full, kept)


def _without_attention(file: WeightFile, own: Model) -> WeightFile:
  """Leaves out the zeros in place of removed attention layers."""
  prefixes = tuple(
    f'blocks.{layer}.{part}.'
    for layer in own.removed_layers
    for part in ATTENTION_PARTS
  ) + tuple(f'blocks.{layer}.gamma_1' for layer in own.removed_layers)
  filled = [name for name in file.shapes if name.startswith(prefixes)]
  for name in filled:
    if '.proj.' in name and file.read(name).any():
      raise CheckpointError(
        f'{file.path}: {name} is not zero, but its attention layer is '
        'described as removed; export the model again'
      )
  return file.without(filled)


def _without_old_head(file: WeightFile) -> WeightFile:
  """Leaves out the layer between norm and head of old ImageNet-21k files.

  It belongs to their head, which is left out with it; timm dropped both too.
  """
  if not any(name.startswith('pre_logits/') for name in file.shapes):
    return file
  _LOG.warning('%s: pre_logits and the head after it are left out', file.path)
  old = ('pre_logits/', 'head/')
  return file.without([x for x in file.shapes if x.startswith(old)])
