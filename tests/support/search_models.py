"""Small random networks and images for the tests of the search."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import Model

# Not a multiple of any micro-batch size: the last micro-batch is padded.
NUM_IMAGES = 75


def make_model(variant, depth=3, seed=0, **options):
  """A random network whose attention layers differ in importance.

  Drawn by numpy: initialisation with jax would compile a program per model.
  """
  variant = dataclasses.replace(variant, depth=depth)
  module = make_module(variant, **options)
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':
      scale = np.prod(leaf.shape[:-1]) ** -0.5
      return rng.normal(size=leaf.shape, scale=scale).astype(np.float32)
    centre = 1.0 if name in ('scale', 'gamma') else 0.0
    return (centre + rng.normal(size=leaf.shape, scale=0.3)).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(draw, abstract_params(module))
  return Model(module, params, 'tiny', variant.preprocessing(module.image_size))


def make_images(count=NUM_IMAGES, seed=0, shape=(8, 8, 1)):
  """Images with structure: noise of random contrast and brightness."""
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(count, *shape))
  images *= rng.uniform(0.2, 2.0, size=(count, 1, 1, 1))
  images += rng.normal(size=(count, 1, 1, 1))
  return images.astype(np.float32)


def batches_of(images, size=32):
  return [images[i : i + size] for i in range(0, len(images), size)]


def mesh_of(devices):
  return Mesh(np.asarray(jax.devices()[:devices]), ('data',))


def labelled_batches(images, size=50, seed=1):
  """Batches of images with random labels of ten classes."""
  labels = np.random.default_rng(seed).integers(0, 10, len(images))
  return [
    {'image': images[i : i + size], 'label': labels[i : i + size]}
    for i in range(0, len(images), size)
  ]
