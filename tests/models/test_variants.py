"""Names of variants, and the preprocessing of each of timm's weights."""

import dataclasses
import re

import pytest

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.preprocessing import (
  CLIP_MEAN,
  IMAGENET_MEAN,
  IMAGENET_STD,
  INCEPTION_MEAN,
)
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.models.pretrained_tags import TAGS
from lambda_vit_jax.models.variants import (
  VARIANTS,
  Variant,
  get_variant,
  list_models,
  tags,
)
from lambda_vit_jax.models.vit import ViT


def test_names_are_listed_by_a_part_or_a_pattern():
  assert list_models() == tuple(sorted(VARIANTS))
  assert set(list_models('dinov2')) == {n for n in VARIANTS if 'dinov2' in n}
  assert list_models('vit_nano*') == list_models('vit_nano')
  assert list_models('nano*') == list_models('nowhere') == ()


@pytest.mark.parametrize(
  'name, mean, crop_ratio, num_classes',
  [
    ('vit_small_patch16_224', INCEPTION_MEAN, 0.9, 1000),
    ('vit_small_patch16_224.dino', IMAGENET_MEAN, 0.9, 0),
    ('vit_small_patch16_224.augreg_in21k', INCEPTION_MEAN, 0.9, 21843),
    ('vit_base_patch16_224.mae', IMAGENET_MEAN, 0.9, 0),
    ('vit_base_patch16_224.bamboo', CLIP_MEAN, 1.0, 115217),
    ('deit3_small_patch16_224.fb_in1k', IMAGENET_MEAN, 0.9, 1000),
    ('deit3_small_patch16_224.fb_in22k_ft_in1k', IMAGENET_MEAN, 1.0, 1000),
  ],
)
def test_weights_have_their_own_preprocessing(
  name, mean, crop_ratio, num_classes
):
  variant = get_variant(name)
  assert variant.mean == mean
  assert variant.crop_ratio == crop_ratio
  assert variant.num_classes == num_classes


def test_a_model_of_a_tag_normalises_like_it():
  model = create_model('vit_small_patch16_224.dino', image_size=16)
  assert model.preprocessing.mean == IMAGENET_MEAN
  assert model.preprocessing.std == IMAGENET_STD
  assert (model.variant, model.num_classes) == ('vit_small_patch16_224', 0)


def test_unknown_tags_are_refused():
  with pytest.raises(
    ModelError, match=r"unknown tag 'dinoo'; did you mean dino"
  ):
    get_variant('vit_small_patch16_224.dinoo')
  with pytest.raises(ModelError, match="unknown tag 'x'"):
    get_variant('vit_mini_patch2_8.x')


def test_tags_are_of_known_variants():
  assert set(TAGS) <= set(VARIANTS)
  # One of each variant's weights is among its tags.
  assert all(
    VARIANTS[name].weights.endswith(tuple(tags(name)))
    for name in VARIANTS
    if VARIANTS[name].weights
  )


def test_a_module_and_a_variant_have_the_same_defaults():
  """Which of the two left a field out does not matter."""
  module, variant = (
    {
      field.name: field.default
      for field in dataclasses.fields(kind)
      if field.default is not dataclasses.MISSING and field.name != 'name'
    }
    for kind in (ViT, Variant)
  )
  shared = module.keys() & variant.keys()
  assert {'mlp_alignment', 'mlp_ratio', 'pooling', 'rotary'} <= shared
  for name in shared:
    assert module[name] == variant[name], name


@pytest.mark.parametrize('name', VARIANTS)
def test_patches_and_images_are_as_large_as_the_name_says(name):
  variant = VARIANTS[name]
  (patch,) = re.findall(r'_patch(\d+)', name)
  assert variant.patch_size == int(patch)
  assert variant.image_size % variant.patch_size == 0
  sizes = re.findall(r'_(\d+)(?=[_.]|$)', name)
  # Names of DINO backbones have none: the size that they were trained at last.
  trained = 518 if name.endswith('dinov2') else 256
  assert variant.image_size == (int(sizes[0]) if sizes else trained)


# As published; `small_plus` and `huge_plus` are of DINOv3.
DEPTHS = {
  'tiny': 12, 'small': 12, 'small_plus': 12, 'medium': 12, 'base': 12,
  'large': 24, 'huge': 32, 'huge_plus': 32, 'giant': 40, 'giantopt': 40,
  'gigantic': 48, 'so400m': 27,
}  # fmt: skip


@pytest.mark.parametrize('name', VARIANTS)
def test_networks_are_as_deep_as_published(name):
  (size,) = re.findall(r'^[a-z0-9]+?_([a-z0-9_]+?)_(?:distilled_)?patch', name)
  if size in ('nano', 'mini'):
    # Ours, for tests and digits.
    return
  assert VARIANTS[name].depth == DEPTHS[size]
