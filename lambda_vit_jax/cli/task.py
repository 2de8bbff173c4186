"""What a run is for: a class per image, or one per pixel (`config.task`)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.data.augment import Augment, Recipe
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.data.segment_augment import SegmentAugment
from lambda_vit_jax.data.sources import registry
from lambda_vit_jax.data.sources.dataset import Dataset
from lambda_vit_jax.models import adapt
from lambda_vit_jax.models import adapt as adapt_lib
from lambda_vit_jax.models.decoders import Decoder, spread_blocks
from lambda_vit_jax.models.model import Model

TASKS = ('classify', 'segment')
"""Values of `config.task`."""


def segments(config: Mapping[str, Any]) -> bool:
  """Whether the run is for classes of pixels.

  Raises:
    UsageError: not one of `TASKS`, or with options that it does not have.
  """
  task = config['task']
  if task not in TASKS:
    raise UsageError(
      f'config.task={task!r} is not known; use {" or ".join(TASKS)}'
    )
  if task == 'classify':
    return False
  for stage in ('pretrain', 'dilute'):
    for key in ('mixup', 'cutmix'):
      if config[stage][key]:
        raise UsageError(
          f'config.{stage}.{key}={config[stage][key]}: images with masks are '
          'not mixed; set it to 0'
        )
  criterion = str(config['select']['criterion'])
  if 'loss_increase' in criterion:
    raise UsageError(
      f'config.select.criterion={criterion!r} needs a class per image; with '
      'task=segment use transfer_entropy, cosine, affine or probe'
    )
  return True


def open_dataset(config: Mapping[str, Any]) -> Dataset:
  """The data set of `data.source`, as the task reads it."""
  data = config['data']
  if not segments(config):
    return registry.open_dataset(data['source'], data['cache_dir'] or None)
  number = config['segment']['num_classes']
  return registry.open_masks(
    data['source'],
    None
    if number is None
    else config_values.integer(number, 'segment.num_classes'),
  )


def recipe(config: Mapping[str, Any], dataset: Dataset) -> Recipe:
  """From stored records to examples."""
  if not segments(config):
    return Augment.from_config(dict(config['data']['augment']))
  return segment_recipe(config['segment'], dataset.num_classes)


def segment_recipe(
  settings: Mapping[str, Any], num_classes: int
) -> SegmentAugment:
  """From the config's section `segment`.

  Raises:
    UsageError: values that cannot be; names the key.
  """
  return SegmentAugment(
    _rules(settings, num_classes),
    scale=tuple(
      config_values.number(value, 'segment.scale')
      for value in settings['scale']
    ),
    most_of_one=config_values.number(
      settings['most_of_one'], 'segment.most_of_one'
    ),
    flip=config_values.number(settings['flip'], 'segment.flip'),
    photometric=config_values.number(
      settings['photometric'], 'segment.photometric'
    ),
  )


def mask_rules(config: Mapping[str, Any], dataset: Dataset) -> MaskRules:
  """What the masks' numbers mean."""
  return _rules(config['segment'], dataset.num_classes)


def _rules(settings: Mapping[str, Any], num_classes: int) -> MaskRules:
  return MaskRules(
    num_classes,
    config_values.integer(settings['ignore_index'], 'segment.ignore_index'),
    bool(settings['reduce_zero_label']),
  )


def decoder(config: Mapping[str, Any], depth: int) -> Decoder:
  """The decoder of `config.segment`, for a network of `depth` blocks."""
  settings = config['segment']
  kind = settings['decoder']
  blocks = tuple(
    config_values.integer(block, 'segment.blocks')
    for block in settings['blocks']
  )
  if kind == 'upernet' and not blocks:
    blocks = spread_blocks(depth)
  return Decoder(
    kind,
    blocks,
    channels=config_values.integer(settings['channels'], 'segment.channels'),
    dropout=config_values.number(settings['dropout'], 'segment.dropout'),
  )


def with_outputs(
  config: Mapping[str, Any], model: Model, dataset: Dataset
) -> Model:
  """`model` with the outputs of the task; a decoder that fits is kept.

  One that segments gets a head on the mean of its patches where the task is to
  classify: no decoder has trained the class token.
  """
  seed = config_values.integer(config['seed'], 'seed')
  found = model.module.segmentation
  if segments(config):
    wanted = decoder(config, model.depth)
    if found is not None:
      alike = found.kind == wanted.kind
      if alike and model.kept_blocks and not config['segment']['blocks']:
        # Renumbered where blocks were dropped.
        wanted = dataclasses.replace(wanted, blocks=found.blocks)
      # Of the weights, whatever the config.
      wanted = dataclasses.replace(wanted, doublings=found.doublings)
      found = dataclasses.replace(found, dropout=wanted.dropout)
    if found == wanted and model.num_classes == dataset.num_classes:
      model = model.replace(module=model.module.clone(segmentation=wanted))
    else:
      wanted = dataclasses.replace(wanted, doublings=())
      model = adapt_lib.with_decoder(model, wanted, dataset.num_classes, seed)
  elif found is not None:
    model = adapt.with_num_classes(
      adapt_lib.backbone(model), dataset.num_classes, seed
    )
  return model.replace(class_names=dataset.class_names)


def searched(model: Model) -> Model:
  """What selection, profiles and fits look at: the backbone, or all of it."""
  return (
    model if model.module.segmentation is None else adapt_lib.backbone(model)
  )


def for_search(
  config: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, Any]:
  """A batch as searches read it: classes of pixels are none of images."""
  if not segments(config):
    return dict(batch)
  return {name: batch[name] for name in ('image', 'mask')}
