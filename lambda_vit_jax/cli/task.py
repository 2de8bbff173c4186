"""Data set, outputs and batches for the tasks `classify` and `segment`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli.settings import Segment, Settings
from lambda_vit_jax.compression.options import CompressOptions
from lambda_vit_jax.data.augment import Augment, Recipe
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.data.segment_augment import SegmentAugment
from lambda_vit_jax.data.sources import registry
from lambda_vit_jax.data.sources.dataset import Dataset
from lambda_vit_jax.models import adapt
from lambda_vit_jax.models.decoders import Decoder, spread_blocks
from lambda_vit_jax.models.model import Model


def open_dataset(settings: Settings) -> Dataset:
  """Opens the data set of `data.source`, as the task reads it."""
  data = settings.data
  if settings.segments:
    return registry.open_masks(data.source, settings.segment.num_classes)
  return registry.open_dataset(data.source, data.cache_dir or None)


def recipe(settings: Settings, dataset: Dataset) -> Recipe:
  """Returns what turns stored records into examples."""
  if settings.segments:
    return segment_recipe(settings.segment, dataset.num_classes)
  return Augment.from_config(dict(settings.data.augment))


def segment_recipe(segment: Segment, num_classes: int) -> SegmentAugment:
  """Returns the recipe for images with masks.

  Raises:
    UsageError: impossible values; names the key.
  """
  return SegmentAugment(
    mask_rules(segment, num_classes),
    scale=segment.scale,
    most_of_one=segment.most_of_one,
    flip=segment.flip,
    photometric=segment.photometric,
  )


def mask_rules(segment: Segment, num_classes: int) -> MaskRules:
  """Returns what the numbers in masks mean."""
  return MaskRules(num_classes, segment.ignore_index, segment.reduce_zero_label)


def decoder(segment: Segment, depth: int) -> Decoder:
  """Returns the decoder for a network of `depth` blocks."""
  blocks = segment.blocks
  if segment.decoder == 'upernet' and not blocks:
    blocks = spread_blocks(depth)
  return Decoder(
    segment.decoder, blocks, channels=segment.channels, dropout=segment.dropout
  )


def with_outputs(settings: Settings, model: Model, dataset: Dataset) -> Model:
  """Returns `model` with the task's outputs; a decoder that fits is kept.

  A head for as many classes is kept, too. A model with a decoder gets a head on
  the mean of its patch tokens where the task is to classify: no decoder has
  trained the class token.
  """
  number, seed = dataset.num_classes, settings.seed
  if settings.segments:
    model = _with_decoder(settings.segment, model, number, seed)
  elif model.module.segmentation is not None:
    model = adapt.with_num_classes(adapt.backbone(model), number, seed)
  elif model.num_classes != number:
    model = adapt.with_num_classes(model, number, seed)
  return model.replace(class_names=dataset.class_names)


def _with_decoder(
  segment: Segment, model: Model, num_classes: int, seed: int
) -> Model:
  found = model.module.segmentation
  wanted = decoder(segment, model.depth)
  if found is not None:
    alike = found.kind == wanted.kind
    if alike and model.kept_blocks and not segment.blocks:
      # Renumbered when blocks were dropped.
      wanted = dataclasses.replace(wanted, blocks=found.blocks)
    # Belong to the weights, whatever the config.
    wanted = dataclasses.replace(wanted, doublings=found.doublings)
    found = dataclasses.replace(found, dropout=wanted.dropout)
  if found == wanted and model.num_classes == num_classes:
    return model.replace(module=model.module.clone(segmentation=wanted))
  wanted = dataclasses.replace(wanted, doublings=())
  return adapt.with_decoder(model, wanted, num_classes, seed)


def compress_options(
  settings: Settings, memory_gib: float | None = None
) -> CompressOptions:
  """Returns how the stage `compress` searches."""
  section = dataclasses.asdict(settings.compress)
  del section['num_images']
  return CompressOptions(**section, memory_gib=memory_gib)


def searched(model: Model) -> Model:
  """Returns the part that searches and fits read: all but a decoder."""
  return model if model.module.segmentation is None else adapt.backbone(model)


def for_search(settings: Settings, batch: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a batch as searches read it: without labels of pixels."""
  if not settings.segments:
    return dict(batch)
  return {name: batch[name] for name in ('image', 'mask')}
