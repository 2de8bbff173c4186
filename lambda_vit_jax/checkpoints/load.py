"""`load_pretrained`: weights from any supported source, strictly checked."""

import contextlib
import importlib.resources
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from etils import epath

from lambda_vit_jax.checkpoints import (
  description,
  hub,
  in_memory,
  orbax_store,
  readers,
  third_party,
)
from lambda_vit_jax.core import digests, files
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import CheckpointError, nearest
from lambda_vit_jax.models import adapt
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import VARIANTS, get_variant, tags

_LOG = logging.getLogger(__name__)

_BUILTIN = 'builtin:'

# Stages whose folders of checkpoints hold networks.
_TRAINED = ('pretrain', 'dilute', 'baseline')


@check_arguments
def load_pretrained(
  where: str | epath.PathLike | Any,
  variant: str | None = None,
  num_classes: int | None = None,
  image_size: int | Sequence[int] | None = None,
) -> Model:
  """Loads a model from weights, ours or another program's.

  Args:
    where: a `.safetensors` file or a folder with one (`config.json` is read
      where there is one, unless the weights describe themselves, as ours do),
      `hf-hub:OWNER/NAME`, a variant's name for the hub's weights, a `.pth` or
      `.ckpt` (read by PyTorch without running it), a `.npz` of Google's, an
      `export/` folder, a workdir, or `builtin:NAME` for weights that come with
      the package. A workdir gives the smallest network that it has: its export,
      or else what was diluted, compressed or linearised;
      `WORKDIR/checkpoints/pretrain` is the dense one. docs/layouts.md lists
      whose names are read. `FILE#NAME` is one of several sets of weights in a
      file. Also timm's `VisionTransformer` itself, or a state dict.
    variant: a name of `lambda-vit models`; by default read from the files
      beside the weights, or from the arrays' shapes if they fit only one.
    num_classes: the weights' own by default. Another number gives a newly
      initialised head, which is logged; 0 drops the head.
    image_size: pixels, divisible by the patch size; the weights' own by
      default. For another size the position embedding is resized.

  Returns:
    A model with float32 parameters, whatever the file stores; only that of an
    int8 export stays quantised (`models.edits.dequantize` undoes that).

  Raises:
    CheckpointError: weights that are missing, damaged, or do not fit.
    ModelError: an unknown variant, or an impossible size.
  """
  if variant is not None:
    get_variant(variant)
  if in_memory.is_network(where):
    model = in_memory.load_network(where, variant)
    return _adapted(model, 'the network', num_classes, image_size)
  if not isinstance(where, str | os.PathLike):
    raise CheckpointError(
      f'load_pretrained: {type(where).__name__} is no path, no network of '
      "timm's and no state dict; give one of these"
    )
  text = str(where)
  path = files.user_path(where)
  if text.startswith(_BUILTIN):
    known = _builtins()
    name = text.removeprefix(_BUILTIN)
    if name not in known:
      raise CheckpointError(
        f'{text}: no such weights in the package{nearest(name, known)}; known '
        f'are {", ".join(known)}'
      )
    path = epath.Path(known[name])
  if hub.is_hub_name(text):
    model = third_party.load_folder(hub.download(text), variant)
  elif path.is_dir():
    model = _load_directory(path, variant)
  elif path.exists():
    model = third_party.load_file(path, variant)
  elif weights := _hub_weights(text):
    _LOG.warning('%s: taken from %s', text, weights)
    model = third_party.load_folder(hub.download(weights), variant)
  elif '#' in text and (file := _before_name(text)).is_file():
    model = third_party.load_file(file, variant, text.rpartition('#')[2])
  else:
    raise CheckpointError(f'{text}: no such file or folder{_offer(text)}')
  return _adapted(model, text, num_classes, image_size)


def _before_name(text: str) -> epath.Path:
  """The file of `FILE#NAME`."""
  return files.user_path(text.rpartition('#')[0])


def _adapted(
  model: Model,
  where: str,
  num_classes: int | None,
  image_size: int | Sequence[int] | None,
) -> Model:
  """`model` for other images and classes; see `load_pretrained`."""
  if image_size is not None:
    model = adapt.with_image_size(model, image_size)
  if num_classes is None or num_classes == model.num_classes:
    return model
  if num_classes:
    _LOG.warning(
      '%s: the head for %d classes is newly initialised (the weights have %d)',
      where,
      num_classes,
      model.num_classes,
    )
  return adapt.with_num_classes(model, num_classes)


@check_arguments
def load_export(directory: str | epath.PathLike) -> Model:
  """Loads an `export/` folder, from `params/` and `model.json` alone.

  Args:
    directory: written by the stage `export` or `lv.export`
      (docs/files_export.md#an-export); may be `gs://…`.

  Returns:
    A model with its parameters as stored.

  Raises:
    CheckpointError: not an export, or a damaged one.
  """
  directory = files.user_path(directory)
  path = directory / 'model.json'
  if not path.exists():
    raise CheckpointError(
      f'{directory}: no export here (model.json is missing); run the stage '
      '`export` first'
    )
  readers.check_link(path)
  model = description.rebuild(read_description(path), str(path))
  if not (directory / 'params').exists():
    raise CheckpointError(
      f'{directory / "params"}: missing; export again with `orbax` among the '
      'formats'
    )
  readers.check_link(directory / 'params')
  check_exported(directory, 'params')
  params = orbax_store.restore_tree(directory / 'params', model.params)
  return model.replace(params=params)


def read_description(path: epath.Path) -> dict[str, Any]:
  """Reads a `model.json`.

  Raises:
    CheckpointError: missing, or not such a file.
  """
  return files.read_json(path, description.SCHEMA, description.REMEDY)


def check_exported(directory: epath.Path, name: str) -> None:
  """Compares one file of an export with its digest in `model.json`.

  Raises:
    CheckpointError: it, or `model.json`, was changed since the export.
  """
  path = directory / 'model.json'
  fields = read_description(path)
  digests.check_seal(fields, str(path), description.REMEDY)
  if 'files' in fields:
    digests.check_files(directory, fields['files'], name)


def _builtins() -> dict[str, str]:
  """Paths of the weights that come with the package, by name."""
  folder = importlib.resources.files('lambda_vit_jax.checkpoints.builtin')
  return {
    pathlib.PurePath(file.name).stem: str(file)
    for file in folder.iterdir()
    if file.name.endswith('.safetensors')
  }


def _load_directory(path: epath.Path, variant: str | None) -> Model:
  if (path / 'model.json').exists():
    model = load_export(path)
  elif (path / 'checkpoints').exists() or (path / 'export').exists():
    model = _load_workdir(path)
  elif path.parent.name == 'checkpoints' and path.name in _TRAINED:
    model = load_stage(path.parent.parent, path.name)
  else:
    return third_party.load_folder(path, variant)
  return third_party.check_variant(model, variant, str(path))


def _load_workdir(workdir: epath.Path) -> Model:
  """Loads the export of a run, or else its newest finished checkpoint."""
  for stage in ('export', 'dilute', 'compressed', 'linear', 'pretrain'):
    if (workdir / stage / 'model.json').exists():
      return load_export(workdir / stage)
    directory = workdir / 'checkpoints' / stage
    if orbax_store.newest_step(directory) is None:
      continue
    model = load_stage(workdir, stage)
    if 'diluted' not in model.attention_modes:
      return model
    _LOG.warning(
      '%s: dilution is not finished; loading the dense model', directory
    )
  raise CheckpointError(
    f'{workdir}: a workdir without a finished checkpoint; run the stage '
    '`pretrain` first'
  )


def load_stage(
  workdir: str | epath.PathLike,
  stage: str,
  best: bool = False,
  finished: bool = False,
  weights: Literal['raw', 'ema'] = 'ema',
) -> Model:
  """Loads a checkpoint of a training stage, the newest by default.

  Each process of a job reads it on its own, onto its first device.

  Args:
    workdir: a run's folder.
    stage: `pretrain`, `dilute` or `baseline`.
    best: take the checkpoint with the highest accuracy on held-out images;
      there is one only at λ = 0.
    finished: refuse a stage that has not reached its last step.
    weights: `ema` for the averaged parameters where the stage kept an
      average, `raw` for the parameters themselves.

  Raises:
    CheckpointError: no checkpoint of that stage, an unusable one, or an
      unfinished stage with `finished`.
  """
  with _opened(workdir, stage) as checkpointer:
    directory = checkpointer.directory
    if finished:
      newest = _find_step(checkpointer, stage)
      total = checkpointer.read_meta(newest).get('total_steps', newest)
      if newest < total:
        raise CheckpointError(
          f'{directory}: is at step {newest} of {total}; run the stage '
          f'`{stage}` to its end first'
        )
    step = _find_step(checkpointer, stage, best)
    meta = checkpointer.read_meta(step)
    model = description.rebuild(meta.get('model'), str(directory / str(step)))
    item = 'ema' if meta.get('has_ema') and weights == 'ema' else 'params'
    abstract = orbax_store.on_first_device(model.params)
    params = checkpointer.restore(step, {item: abstract})[item]
  return model.replace(params=params)


def stage_step(
  workdir: str | epath.PathLike, stage: str, best: bool = False
) -> int:
  """Returns the step of the checkpoint that `load_stage` loads; raises alike."""
  with _opened(workdir, stage) as checkpointer:
    return _find_step(checkpointer, stage, best)


def _opened(
  workdir: str | epath.PathLike, stage: str
) -> 'contextlib.closing[orbax_store.Checkpointer]':
  directory = files.user_path(workdir) / 'checkpoints' / stage
  if not directory.exists():
    raise _missing(directory, stage)
  return contextlib.closing(orbax_store.Checkpointer(directory, reader=True))


def _find_step(
  checkpointer: orbax_store.Checkpointer, stage: str, best: bool = False
) -> int:
  newest, directory = checkpointer.latest_step(), checkpointer.directory
  if newest is None:
    raise _missing(directory, stage)
  if not best:
    return newest
  step = checkpointer.best_step()
  if step is None:
    raise CheckpointError(
      f'{directory}: no checkpoint at λ = 0 was evaluated on held-out images; '
      'set config.export.checkpoint=last'
    )
  return step


def _missing(directory: epath.Path, stage: str) -> CheckpointError:
  return CheckpointError(
    f'{directory}: no finished checkpoint; run the stage `{stage}` first'
  )


def _hub_weights(name: str) -> str:
  """Where the hub has the weights of a variant or a tag; '' for other names."""
  base, _, tag = name.partition('.')
  if base not in VARIANTS or not VARIANTS[base].weights:
    return ''
  repository = VARIANTS[base].weights.partition('.')[0]
  if not tag:
    return VARIANTS[base].weights
  return f'{repository}.{tag}' if tag in tags(base) else ''


def _offer(text: str) -> str:
  """Suggests the nearest names for a path that does not exist."""
  path = pathlib.PurePath(text)
  base = path.name.partition('.')[0]
  if base in _builtins():
    return f'; did you mean {_BUILTIN}{base}?'
  if base not in VARIANTS:
    return nearest(base, VARIANTS)
  if len(path.parts) == 2:
    return f'; did you mean hf-hub:{text}?'
  return (
    ', and no weights of that variant are known; give a file, or make a network '
    f"of random weights with lv.create_model('{base}')"
  )
