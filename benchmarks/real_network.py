"""A real backbone, its data and a fixed linear probe, for real_backbone.py.

Images are decoded once and kept as 8-bit pixels, and the probe is fitted once
on the dense network's features: both are in a cache folder outside the
repository.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from lambda_vit_jax.data import transforms
from lambda_vit_jax.data.sources.dataset import ImageSource
from lambda_vit_jax.data.sources.registry import open_dataset
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.model import Model

BATCH = 64
# Penalties of the probe's squared weights, on features of unit variance.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
STEPS = 400
# Of random crops, as a share of the image, and their width over height.
AREA, ASPECT = (0.5, 1.0), (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class Split:
  """Images of one split, decoded, with their labels.

  Attributes:
    pixels: uint8 `[n, height, width, 3]`.
    labels: int32 `[n]`.
  """

  pixels: np.ndarray
  labels: np.ndarray

  def take(self, places: np.ndarray) -> 'Split':
    return Split(self.pixels[places], self.labels[places])

  def images(self, model: Model) -> np.ndarray:
    """float32, as the model takes them."""
    return np.stack(
      [transforms.normalise(p, model.preprocessing) for p in self.pixels]
    )

  def batches(self, model: Model) -> Iterator[np.ndarray]:
    """The images in batches of one size, the last one padded with zeros."""
    for start in range(0, len(self.labels), BATCH):
      part = Split(self.pixels[start : start + BATCH], self.labels[:0])
      images = part.images(model)
      missing = BATCH - len(images)
      yield np.pad(images, ((0, missing), *((0, 0),) * 3))


def varied(split: Split, copies: int, seed: int = 0) -> Split:
  """The images, mirrored, and as further copies of random crops, half mirrored."""
  rng = np.random.default_rng(seed)
  pixels = [split.pixels, split.pixels[:, :, ::-1]]
  height, width = split.pixels.shape[1:3]
  for _ in range(copies - 2):
    crops = []
    for image in split.pixels:
      box = transforms.sample_crop((width, height), AREA, ASPECT, rng)
      crop = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BICUBIC, box=box
      )
      crops.append(np.asarray(crop)[:, :: rng.choice((1, -1))])
    pixels.append(np.stack(crops))
  return Split(np.concatenate(pixels), np.tile(split.labels, copies))


def cached(
  path: pathlib.Path, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """The arrays in a file, which is written where it does not exist."""
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part.npz')
    np.savez(part, **compute())
    part.rename(path)
  with np.load(path) as arrays:
    return dict(arrays)


def read_split(source: ImageSource, model: Model, path: pathlib.Path) -> Split:
  """Decodes a split with the evaluation transform."""

  def decode() -> dict[str, np.ndarray]:
    pixels = [
      transforms.evaluation_pixels(source[i]['image'], model.preprocessing)
      for i in range(len(source))
    ]
    return {'pixels': np.stack(pixels), 'labels': np.asarray(source.labels)}

  found = cached(path, decode)
  return Split(found['pixels'], found['labels'].astype(np.int32))


def read_data(
  source: str, model: Model, cache: pathlib.Path
) -> tuple[Split, Split, int]:
  """The training and test images, and the number of classes."""
  data = open_dataset(source)
  train = read_split(data.train, model, cache / 'train.npz')
  test = read_split(data.test, model, cache / 'test.npz')
  return train, test, data.num_classes


def outputs(model: Model, split: Split) -> tuple[np.ndarray, np.ndarray]:
  """Logits (or features) `[n, ...]`, and features after the final norm."""
  found = []
  for images in split.batches(model):
    logits, taps = forward(model.module, model.params, images)
    found.append((np.asarray(logits), np.asarray(taps['features'])))
  count = len(split.labels)
  return tuple(
    np.concatenate(part)[:count] for part in zip(*found, strict=True)
  )


@functools.partial(jax.jit, static_argnames=('classes',))
def _fit(
  features: jax.Array, labels: jax.Array, penalty: jax.Array, classes: int
) -> tuple[jax.Array, jax.Array]:
  """Multinomial logistic regression with squared weights penalised, L-BFGS."""
  solver = optax.lbfgs()
  weights = (
    jnp.zeros((features.shape[1], classes)),
    jnp.zeros((classes,)),
  )

  def loss(weights: tuple[jax.Array, jax.Array]) -> jax.Array:
    kernel, bias = weights
    errors = optax.softmax_cross_entropy_with_integer_labels(
      features @ kernel + bias, labels
    )
    return errors.mean() + 0.5 * penalty * (kernel**2).sum()

  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry: tuple, _: None) -> tuple:
    weights, state = carry
    value, gradient = value_and_grad(weights, state=state)
    updates, state = solver.update(
      gradient, state, weights, value=value, grad=gradient, value_fn=loss
    )
    return (optax.apply_updates(weights, updates), state), None

  (weights, _), _ = jax.lax.scan(
    step, (weights, solver.init(weights)), length=STEPS
  )
  return weights


def fit_probe(
  features: np.ndarray, labels: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
  """The probe's kernel and bias; the penalty by a fifth of the images."""
  mean, std = features.mean(axis=0), features.std(axis=0)
  inputs = (features - mean) / std
  held = np.arange(len(labels)) % 5 == 0
  accuracy = []
  for penalty in PENALTIES:
    kernel, bias = _fit(inputs[~held], labels[~held], penalty, classes)
    right = (inputs[held] @ kernel + bias).argmax(axis=1) == labels[held]
    accuracy.append(float(right.mean()))
  best = int(np.argmax(accuracy))
  kernel, bias = map(np.asarray, _fit(inputs, labels, PENALTIES[best], classes))
  kernel = kernel / std[:, None]
  return {
    'kernel': kernel,
    'bias': bias - mean @ kernel,
    'penalty': np.asarray(PENALTIES[best]),
    'held_out': np.asarray(accuracy[best]),
  }


def with_probe(
  backbone: Model, train: Split, classes: int, cache: pathlib.Path
) -> Model:
  """The backbone with a probe on its class token as the head."""

  def fit() -> dict[str, np.ndarray]:
    _, features = outputs(backbone, train)
    order = np.random.default_rng(0).permutation(len(train.labels))
    return fit_probe(features[order], train.labels[order], classes)

  probe = cached(cache / 'probe.npz', fit)
  head = {name: jnp.asarray(probe[name]) for name in ('kernel', 'bias')}
  return backbone.replace(
    module=backbone.module.clone(num_classes=classes),
    params=backbone.params | {'head': head},
  )
