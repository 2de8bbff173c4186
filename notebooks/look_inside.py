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
# # Look inside a Vision Transformer
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lambda_vit_jax/blob/main/notebooks/look_inside.ipynb)
#
# Entropy of every layer, cosine, spectrum, and which attention layers the
# network needs least. It takes a minute on CPU, GPU or TPU: a 12-block ViT for
# digits is included in the package.

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

# %%
import jax
import numpy as np

import lambda_vit_jax as lv

model = lv.load_pretrained('builtin:vit_mini_patch2_8_digits')
f'{model.num_parameters:,} parameters, {model.depth} blocks, on {jax.devices()}'

# %% [markdown]
# Images: scikit-learn's 8x8 handwritten digits, normalised as the model expects.
# For a real choice, use images that the model was not trained on;
# `lambda-vit select` holds some out for this.

# %%
from sklearn.datasets import load_digits

digits = load_digits().images[:512, :, :, None] / 16
mean, std = model.preprocessing.mean[0], model.preprocessing.std[0]
images = ((digits - mean) / std).astype(np.float32)
batches = np.split(images, 8)

# %% [markdown]
# Entropy of what each attention layer and each MLP adds to the stream, in nats,
# and the cosine between the input and the output of each attention half.

# %%
profile = lv.entropy_profile(model, batches)
profile

# %%
profile.plot()

# %% [markdown]
# The spectrum: how the features' energy is distributed over spatial frequencies,
# block by block.

# %%
spectrum = lv.spectrum(model, batches)
spectrum

# %%
spectrum.plot()

# %% [markdown]
# NOSE removes, one after another, the layer whose transfer entropy is smallest:
# without it the entropy of the output drops least. The bands are 95% intervals
# from a bootstrap over the images: where they overlap, more images are needed to
# tell the layers apart.

# %%
selection = lv.nose(model, batches, num_layers=5)
selection

# %%
selection.plot()

# %% [markdown]
# With those attention layers left out, before any training:

# %%
trial = lv.prune(model, selection, mode='absent')
agreement = np.mean(
  np.argmax(trial(images), -1) == np.argmax(model(images), -1)
)
f'{100 * agreement:.1f}% of decisions unchanged, {trial.num_parameters:,} parameters'

# %% [markdown]
# Training recovers the rest: see `choose_and_dilute.ipynb`.
