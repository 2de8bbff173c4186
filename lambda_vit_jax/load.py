"""Weights from anywhere to a `Model`: one door, strict behind it."""

import contextlib
import dataclasses
import importlib.resources
import logging
import math
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from lambda_vit_jax import (
  checkpoint,
  convert,
  description,
  hub,
  infer,
  position,
  surgery,
  timm_config,
  weights,
)
from lambda_vit_jax.errors import CheckpointError, ModelError, nearest
from lambda_vit_jax.models import model as model_lib
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import VARIANTS, Variant, get_variant
from lambda_vit_jax.weights import WeightFile

_LOG = logging.getLogger(__name__)

_HEADS = ('head', 'head_dist')
_BUILTIN = 'builtin:'


def load_pretrained(
  where: str | epath.PathLike,
  variant: str | None = None,
  num_classes: int | None = None,
  image_size: int | Sequence[int] | None = None,
) -> Model:
  """A model from weights, ours or another program's.

  Args:
    where: a `.safetensors` file or a folder with one (`config.json` is read
      where there is one), `hf-hub:timm/NAME`, a `.pth` of DeiT (read by
      PyTorch without running it), a `.npz` of Google's, an `export/` folder,
      a workdir, or `builtin:NAME` for weights that come with the package.
    variant: a name of `lambda-vit models`; otherwise read from what lies
      beside the weights, or from the arrays' shapes where they fit one alone.
    num_classes: the weights' own by default. Where it differs the head is
      initialised afresh, which is logged; 0 drops it.
    image_size: pixels, divisible by the patch size; the weights' own by
      default. Where it differs the position embedding is resized.

  Returns:
    A model with float32 parameters, whatever the file stores.

  Raises:
    CheckpointError: weights that are missing, damaged, or do not fit.
    ModelError: an unknown variant, or an impossible size.
  """
  if variant is not None:
    get_variant(variant)
  text = str(where)
  if hub.is_hub_name(text):
    model = _load_folder(hub.download(text), variant)
  else:
    path = epath.Path(_builtin(text) if text.startswith(_BUILTIN) else where)
    if path.is_dir():
      model = _load_directory(path, variant)
    elif path.exists():
      model = _load_file(path, variant)
    else:
      raise CheckpointError(f'{text}: no such file or folder{_offer(text)}')
  return _adapt(model, num_classes, image_size, text)


def load_export(directory: str | epath.PathLike) -> Model:
  """The model of an `export/` folder, from `params/` and `model.json` alone.

  Raises:
    CheckpointError: not an export, or a damaged one.
  """
  directory = epath.Path(directory)
  path = directory / 'model.json'
  if not path.exists():
    raise CheckpointError(
      f'{directory}: no export here (model.json is missing); run the stage '
      '`export` first'
    )
  model = description.rebuild(checkpoint.read_json(path), str(path))
  return model.replace(params=_restore(directory / 'params', model.params))


def _restore(path: epath.Path, abstract: Any) -> Any:
  """Parameters from an Orbax folder, onto the first device."""
  if not path.exists():
    raise CheckpointError(
      f'{path}: missing; export again with `orbax` among the formats'
    )
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shardings = jax.tree.map(lambda _: device, abstract)
  # Orbax wants an absolute path; gs:// is one already.
  path = path if '://' in str(path) else path.resolve()
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(
        path, checkpoint.abstract_like(abstract, shardings)
      )
  except (OSError, ValueError, KeyError, TypeError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise CheckpointError(
      f'{path}: not the parameters that model.json describes ({reason}); '
      'export the model again'
    ) from error


def _builtin(where: str) -> str:
  """The path of weights that are part of the package."""
  assets = importlib.resources.files('lambda_vit_jax.assets')
  name = where.removeprefix(_BUILTIN)
  known = [
    pathlib.PurePath(file.name).stem
    for file in assets.iterdir()
    if file.name.endswith('.safetensors')
  ]
  if name not in known:
    raise CheckpointError(
      f'{where}: no such weights in the package{nearest(name, known)}; known '
      f'are {", ".join(known)}'
    )
  return str(assets / f'{name}.safetensors')


def _load_directory(path: epath.Path, variant: str | None) -> Model:
  if (path / 'model.json').exists():
    return _checked(load_export(path), variant, str(path))
  if (path / 'checkpoints').exists() or (path / 'export').exists():
    return _checked(_load_workdir(path), variant, str(path))
  return _load_folder(path, variant)


def _checked(model: Model, variant: str | None, where: str) -> Model:
  """`model` if it is of the variant asked for."""
  if variant is not None and get_variant(variant).name != model.variant:
    raise CheckpointError(
      f'{where}: holds a {model.variant}, not a {variant}; leave the variant '
      'out, or choose other weights'
    )
  return model


def _load_workdir(workdir: epath.Path) -> Model:
  """What a run ended with: its export, else its newest checkpoint."""
  if (workdir / 'export' / 'model.json').exists():
    return load_export(workdir / 'export')
  for stage in ('dilute', 'pretrain'):
    if (workdir / 'checkpoints' / stage).exists():
      return load_stage(workdir, stage)
  raise CheckpointError(
    f'{workdir}: a workdir without a finished checkpoint; run the stage '
    '`pretrain` first'
  )


def load_stage(workdir: str | epath.PathLike, stage: str) -> Model:
  """The model of a training stage's newest checkpoint.

  Args:
    workdir: a run's folder.
    stage: `pretrain` or `dilute`.

  Returns:
    A model with the averaged parameters where the stage kept an average.

  Raises:
    CheckpointError: no checkpoint of that stage, or an unusable one.
  """
  directory = epath.Path(workdir) / 'checkpoints' / stage
  if directory.exists():
    checkpointer = checkpoint.Checkpointer(directory)
    step = checkpointer.latest_step()
    if step is not None:
      return _load_step(checkpointer, step)
    checkpointer.close()
  raise CheckpointError(
    f'{directory}: no finished checkpoint; run the stage `{stage}` first'
  )


def _load_step(checkpointer: checkpoint.Checkpointer, step: int) -> Model:
  where = str(checkpointer.directory / str(step))
  meta = checkpointer.read_meta(step)
  model = description.rebuild(meta.get('model'), where)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  item = 'ema' if meta.get('has_ema') else 'params'
  abstract = checkpoint.abstract_like(
    model.params, jax.tree.map(lambda _: device, model.params)
  )
  params = checkpointer.restore(step, {item: abstract})[item]
  checkpointer.close()
  return model.replace(params=params)


def _load_folder(path: epath.Path, variant: str | None) -> Model:
  """A folder of another program: one weight file, perhaps `config.json`."""
  files = sorted(
    file for file in path.iterdir() if file.suffix in weights.SUFFIXES
  )
  if not files:
    raise CheckpointError(
      f'{path}: holds no weight file ({", ".join(weights.SUFFIXES)}), no '
      'export and no run'
    )
  if len(files) > 1:
    names = ', '.join(file.name for file in files)
    raise CheckpointError(
      f'{path}: holds {len(files)} weight files ({names}); name the one to load'
    )
  return _load_file(files[0], variant)


def _load_file(path: epath.Path, variant: str | None) -> Model:
  with _local(path) as local:
    file = dataclasses.replace(weights.open_weights(local), path=str(path))
    if file.description is not None:
      own = description.rebuild(file.description, str(path))
      own = _checked(own, variant, str(path))
      file = _without_zero_fill(file, own)
      hint = '; the file is damaged, export the model again'
    else:
      spec = _variant_of(path, file, variant)
      file = _without_old_head(file)
      own = _model_of(spec, file)
      hint = _hint(spec, file)
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
  """The variant asked for, with what `config.json` adds; else found out."""
  config = path.parent / 'config.json'
  if config.exists() and file.rules is convert.TIMM:
    found = timm_config.read_variant(checkpoint.read_json(config), str(config))
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


def _hint(spec: Variant, file: WeightFile) -> str:
  """For the end of a report: what the arrays do look like."""
  others = [
    name
    for name in infer.candidates(file.shapes, file.rules)
    if name != spec.name
  ]
  return f'; its arrays fit {", ".join(others)}' if others else ''


def _model_of(spec: Variant, file: WeightFile) -> Model:
  """The model that a foreign file holds, with shapes for parameters."""

  def shape(name: str) -> convert.Shape | None:
    return infer.parameter_shape(file.shapes, name, file.rules)

  head = shape('head/kernel')
  if shape('fc_norm/scale') is not None:
    spec = dataclasses.replace(spec, norm_before_pool=False)
  module = model_lib.make_module(
    spec,
    num_classes=head[1] if head else 0,
    image_size=_image_size(spec, shape('pos_embed')),
  )
  return Model(
    module=module,
    params=model_lib.abstract_params(module),
    variant=spec.name,
    preprocessing=spec.preprocessing(module.image_size),
  )


def _image_size(spec: Variant, positions: convert.Shape | None) -> int:
  """Pixels that a position embedding is for: the variant's, else a square."""
  if positions is None or len(positions) != 3:
    return spec.image_size
  side = math.isqrt(max(positions[1] - infer.num_prefix(spec), 1))
  fits = infer.num_positions(spec, (side, side)) == positions[1]
  return side * spec.patch_size if fits else spec.image_size


def _without_zero_fill(file: WeightFile, own: Model) -> WeightFile:
  """Leaves out the zeros that stand for removed attentions (zero_fill).

  Raises:
    CheckpointError: they are not zeros.
  """
  if not file.description.get('zero_filled'):
    return file
  shapes = dict(file.shapes)
  for block_index in own.removed_layers:
    for part in surgery.ATTENTION_PARTS:
      prefix = f'blocks.{block_index}.{part}.'
      for name in [name for name in shapes if name.startswith(prefix)]:
        del shapes[name]
        if '.proj.' in name and file.read(name).any():
          raise CheckpointError(
            f'{file.path}: {name} is not zero, but block {block_index} is '
            'described as removed; export the model again'
          )
  return dataclasses.replace(file, shapes=shapes)


def _without_old_head(file: WeightFile) -> WeightFile:
  """Leaves out the layer between norm and head of old ImageNet-21k files.

  It belongs to their head, which goes with it: a model of the same function
  no longer exists elsewhere either (timm dropped both).
  """
  extra = [name for name in file.shapes if name.startswith('pre_logits/')]
  if not extra:
    return file
  _LOG.warning('%s: pre_logits and the head behind it are left out', file.path)
  return dataclasses.replace(
    file,
    shapes={
      name: shape
      for name, shape in file.shapes.items()
      if not name.startswith(('pre_logits/', 'head/'))
    },
  )


def _adapt(
  model: Model,
  num_classes: int | None,
  image_size: int | Sequence[int] | None,
  where: str,
) -> Model:
  """`model` at another image size and with another head, where asked for."""
  if image_size is not None:
    model = with_image_size(model, image_size)
  if num_classes is not None and num_classes != model.num_classes:
    if num_classes:
      _LOG.warning(
        '%s: the head for %d classes is initialised afresh (the weights have '
        '%d)',
        where,
        num_classes,
        model.num_classes,
      )
    model = with_num_classes(model, num_classes)
  return model


def with_image_size(model: Model, image_size: int | Sequence[int]) -> Model:
  """`model` for images of another size: its position embedding resized.

  Raises:
    ModelError: a size that the patch size does not divide.
  """
  old = model.module
  size = model_lib.size_pair(image_size, old.patch_size)
  if size == old.image_size:
    return model
  module = old.clone(image_size=size)
  prefix = old.num_prefix_tokens if old.position_on_class else 0
  resized = position.resize_positions(
    model.params['pos_embed'], old.grid_size, module.grid_size, prefix
  )
  return model.replace(
    module=module,
    params=model.params | {'pos_embed': jnp.asarray(resized)},
    preprocessing=dataclasses.replace(model.preprocessing, image_size=size),
  )


def with_num_classes(model: Model, num_classes: int, seed: int = 0) -> Model:
  """`model` with a fresh head for `num_classes`, or with none for 0.

  Raises:
    ModelError: a negative number.
  """
  if num_classes < 0:
    raise ModelError(f'num_classes {num_classes}: give 0 (no head) or more')
  module = model.module.clone(num_classes=num_classes)
  params = {
    name: value for name, value in model.params.items() if name not in _HEADS
  }
  if num_classes:
    params |= model_lib.init_head(module, seed)
  return model.replace(module=module, params=params, class_names=())


def _offer(text: str) -> str:
  """The nearest names for something that is no path."""
  name = pathlib.PurePath(text).name
  base = name.split('.')[0]
  if base in VARIANTS and VARIANTS[base].weights:
    return f'; did you mean {VARIANTS[base].weights}?'
  return nearest(base, VARIANTS)
