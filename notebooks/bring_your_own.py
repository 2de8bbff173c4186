# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own weights and images
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lambda_vit_jax/blob/main/notebooks/bring_your_own.ipynb)
#
# Load a network, choose what it can spare, put something smaller in its place
# without training, look at what was lost, and export. Set `WEIGHTS` to a backbone
# such as DINOv2 or DeiT and `IMAGES` to a folder; without them, a small network
# and the images of digits are used, which takes some minutes on a CPU.

# %%
# A fresh Colab has JAX for its CPU, GPU or TPU: what is installed stays as it is.
import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement

REPOSITORY = 'https://github.com/OWNER/lambda_vit_jax'
NEEDED = [
  'absl-py>=2.1',
  'etils[epath]>=1.14',
  'flatbuffers>=24.3.6',
  'flax>=0.12.2,<0.14',
  'grain>=0.2.16,<0.4',
  'importlib_resources>=6',
  'jax>=0.10,<0.13',
  'matplotlib>=3.9',
  'ml-collections>=1.0',
  'numpy>=2.0',
  'optax>=0.2.5,<0.4',
  'orbax-checkpoint>=0.11.25,<0.13',
  'pillow>=11',
  'rich>=13',
  'safetensors>=0.5',
  'scikit-learn>=1.5',
  'scipy>=1.13',
  'tensorflow-datasets>=4.9.10,<5',
]


def lacks(line):
  need = Requirement(line)
  try:
    version = importlib.metadata.version(need.name)
  except importlib.metadata.PackageNotFoundError:
    return True
  return not need.specifier.contains(version, prereleases=True)


def install(*arguments):
  command = [sys.executable, '-m', 'pip', 'install', '--quiet', *arguments]
  subprocess.run(command, check=True)


if lacks('lambda_vit_jax'):
  install('--no-deps', f'git+{REPOSITORY}')
  lacking = list(filter(lacks, NEEDED))
  if any(line.startswith('jax>') for line in lacking):
    raise RuntimeError('this runtime has an older JAX: choose a newer runtime')
  if lacking:
    install(*lacking)

# %% [markdown]
# Fill these in. `WEIGHTS`: a file, a folder, an export, or `hf-hub:timm/NAME`
# (needs `huggingface_hub`). `IMAGES`: a folder with `train/CLASS/*.jpg` and
# `val/CLASS/*.jpg`, of the classes of the weights' head in their order. The
# environment variables of these names do the same. Where one is empty, an
# example is used.

# %%
import os

WEIGHTS = os.environ.get('WEIGHTS', '')
IMAGES = os.environ.get('IMAGES', '')

# %%
import pathlib
import tempfile

import numpy as np
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax.main import main

FOLDER = pathlib.Path(tempfile.mkdtemp())

if not IMAGES:
  from sklearn.datasets import load_digits

  IMAGES = FOLDER / 'images'
  digits = load_digits()
  for index, (pixels, label) in enumerate(
    zip(digits.images, digits.target, strict=True)
  ):
    split = 'train' if index % 5 else 'val'
    path = IMAGES / split / str(label) / f'{index:04}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels / 16 * 255).astype(np.uint8)).save(path)

# %% [markdown]
# ## Load

# %%
model = lv.load_pretrained(WEIGHTS or 'builtin:vit_mini_patch2_8_digits')
model.table()

# %% [markdown]
# `check-data` reads every image once and reports what it found. Choices and fits
# take some hundred images of the training split, without their labels.

# %%
assert main(['check-data', f'image_folder:{IMAGES}']) == 0
batches = lv.image_batches(
  pathlib.Path(IMAGES) / 'train', model, num_images=128
)

# %% [markdown]
# ## Choose
# NOSE: by how much the entropy of the output drops without an attention layer.

# %%
selection = lv.nose(model, batches, num_layers=5)
selection

# %% [markdown]
# ## Replace, without training
# An affine map in place of each chosen layer, and MLPs that make up for the rest;
# or one budget for attention, neurons and whole blocks.

# %%
mapped = lv.linearize(model, batches, selection, refit=True)
found = lv.compress(model, batches, target_speedup=1.25)
found

# %%
found.plot()

# %% [markdown]
# ## Evaluate
# On the images of `val`: the accuracy of each network, and its difference to the
# dense one with the 95% interval of the paired difference. A backbone without a
# head has features instead of classes; there the cosine to the dense features is
# shown.

# %%
val = pathlib.Path(IMAGES) / 'val'
test = lv.image_batches(val, model, labels=model.num_classes > 0)


def compare(other):
  if model.num_classes:
    dense, changed = lv.evaluate(model, test), lv.evaluate(other, test)
    difference, half = changed.minus(dense)
    return f'{changed.top1:.2%} ({difference:+.2%} ± {half:.2%})'
  pairs = [(np.asarray(model(x)), np.asarray(other(x))) for x in test]
  a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  return f'cosine {np.mean((a * b).sum(1) / norms):.4f}'


{
  f'{name}, {model.macs() / other.macs():.2f} times fewer operations': compare(
    other
  )
  for name, other in {
    'dense': model,
    'maps': mapped,
    'one budget': found.model,
  }.items()
}

# %% [markdown]
# ## Export
# Each file is read back and its output compared before the folder appears. With
# the extra `onnx`, `formats=('onnx',)` writes a file for ONNX Runtime.

# %%
lv.export(found.model, FOLDER / 'export')

# %% [markdown]
# ## Use it

# %%
smaller = lv.load_export(FOLDER / 'export')
first = val / test.files[0]
smaller.predict(first) if smaller.num_classes else smaller(
  lv.preprocess(first, smaller)
).shape

# %% [markdown]
# ## Train, too
# λ leads from the dense network to the smaller one while it trains. A few steps
# here show that it works; `lambda-vit run` does it with checkpoints, see
# `docs/tutorial.md` for a config of your own.

# %%
trained = lv.dilute(
  model, [next(iter(test))], found.model, steps=4, settle_steps=2
)
compare(trained)
