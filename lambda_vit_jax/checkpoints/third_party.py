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
from collections.abc import Iterator

import jax.numpy as jnp
from etils import epath

from lambda_vit_jax.checkpoints import (
  convert,
  description,
  infer,
  readers,
  timm_config,
)
from lambda_vit_jax.checkpoints.readers import WeightFile
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import read_json
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import ATTENTION_PARTS
from lambda_vit_jax.models.variants import Variant, get_variant

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
  """Loads a folder with one weight file and perhaps timm's `config.json`.

  Raises:
    CheckpointError: no weight file, or several; see `load_file`.
  """
  files = sorted(
    file for file in path.iterdir() if file.suffix in readers.SUFFIXES
  )
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


def load_file(path: epath.Path, variant: str | None) -> Model:
  """Loads one weight file, at its own image size and with its own head.

  Raises:
    CheckpointError: damaged, of an unknown or ambiguous variant, or not
      exactly the arrays that the variant has.
  """
  with _local(path) as local, readers.open_weights(local) as file:
    file = dataclasses.replace(file, path=str(path))
    if file.description is not None:
      own = description.rebuild(file.description, str(path))
      own = check_variant(own, variant, str(path))
      file = _without_zero_fill(file, own)
      hint = '; the file is damaged, export the model again'
    else:
      spec = _variant_of(path, file, variant)
      file = _without_old_head(file)
      own = _model_of(spec, file)
      others = [
        name
        for name in infer.candidates(file.shapes, file.rules)
        if name != spec.name
      ]
      hint = f'; its arrays fit {", ".join(others)}' if others else ''
    params = convert.decode(
      file.shapes,
      file.read,
      own.params,
      f'{path} as {own.variant}',
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
  """The variant given, or found out, with the values of `config.json`."""
  config = path.parent / 'config.json'
  if config.exists() and file.rules is convert.TIMM:
    readers.check_link(config)
    fields = read_json(config, timm_config.SCHEMA, timm_config.REMEDY)
    found = timm_config.read_variant(fields, str(config))
    wanted = found.name if variant is None else get_variant(variant).name
    if wanted.split('.')[0] == found.name.split('.')[0]:
      return dataclasses.replace(found, name=wanted)
    raise CheckpointError(
      f'{config}: describes a {found.name}, not a {variant}; leave the '
      'variant out, or choose other weights'
    )
  if variant is None:
    variant = infer.infer_variant(file.shapes, file.rules, str(path))
  return get_variant(variant)


def _model_of(spec: Variant, file: WeightFile) -> Model:
  """The model of another program's file, with shapes for parameters."""
  shape = functools.partial(
    convert.parameter_shape, file.shapes, rules=file.rules
  )
  head = shape('head/kernel')
  if shape('fc_norm/scale') is not None:
    spec = dataclasses.replace(spec, norm_before_pool=False)
  module = make_module(
    spec,
    num_classes=head[1] if head else 0,
    image_size=_image_size(spec, shape('pos_embed')),
  )
  return Model(
    module=module,
    params=abstract_params(module),
    variant=spec.name,
    preprocessing=spec.preprocessing(module.image_size),
  )


def _image_size(spec: Variant, positions: convert.Shape | None) -> int:
  """Image size from the number of positions: square, else the variant's."""
  if positions is None or len(positions) != 3:
    return spec.image_size
  patches = positions[1] - infer.num_prefix(spec)
  side = math.isqrt(max(patches, 1))
  return side * spec.patch_size if side**2 == patches else spec.image_size


def _without_zero_fill(file: WeightFile, own: Model) -> WeightFile:
  """Leaves out the zeros in place of removed attention layers (zero_fill)."""
  if not (file.description or {}).get('zero_filled'):
    return file
  prefixes = tuple(
    f'blocks.{layer}.{part}.'
    for layer in own.removed_layers
    for part in ATTENTION_PARTS
  )
  filled = [name for name in file.shapes if name.startswith(prefixes)]
  for name in filled:
    if '.proj.' in name and file.read(name).any():
      raise CheckpointError(
        f'{file.path}: {name} is not zero, but its attention layer is '
        'described as removed; export the model again'
      )
  return _without(file, filled)


def _without_old_head(file: WeightFile) -> WeightFile:
  """Leaves out the layer between norm and head of old ImageNet-21k files.

  It belongs to their head, which is left out with it; timm dropped both too.
  """
  if not any(name.startswith('pre_logits/') for name in file.shapes):
    return file
  _LOG.warning('%s: pre_logits and the head after it are left out', file.path)
  old = ('pre_logits/', 'head/')
  return _without(file, [x for x in file.shapes if x.startswith(old)])


def _without(file: WeightFile, names: list[str]) -> WeightFile:
  shapes = {x: shape for x, shape in file.shapes.items() if x not in names}
  return dataclasses.replace(file, shapes=shapes)
