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
# # Choose attention layers and dilute them
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/lambda_vit_jax/blob/main/notebooks/choose_and_dilute.ipynb)
#
# The whole method on 8x8 digits: choose 5 of 12 attention layers, dilute them
# into the identity while the network trains, and compare. It takes five minutes
# on two CPU cores; the same cells run on a GPU or a TPU.

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
import json
import pathlib
import tempfile

import jax
import numpy as np

import lambda_vit_jax as lv
from lambda_vit_jax.main import main

WORKDIR = pathlib.Path(tempfile.mkdtemp()) / 'digits'
jax.devices()

# %% [markdown]
# Every step is a stage of the command line; `stage('select')` below is
# `lambda-vit select --config=configs/digits.py --workdir=WORKDIR`. Each stage
# reads what earlier ones wrote into the folder.


# %%
def stage(name):
  code = main(
    [name, '--config=configs/digits.py', f'--workdir={WORKDIR}', '--quiet']
  )
  assert code == 0, f'stage {name} ended with {code}'


def result(name):
  return json.loads((WORKDIR / name).read_text())


stage('pretrain')
dense = lv.load_pretrained(WORKDIR)
f'{dense.num_parameters:,} parameters; classes {dense.class_names}'

# %% [markdown]
# ## Choose
# NOSE on 200 images of the training split that are held out from training.
# `scores` are transfer entropies in nats: how much the entropy of the network's
# output drops (or, below zero, rises) without that attention layer.

# %%
stage('select')
selection = lv.Selection.from_json(result('selection.json'))
selection

# %%
selection.plot()

# %% [markdown]
# What happens without training? `absent` leaves the stream x as it is, `identity`
# doubles it, which is what dilution ends in.

# %%
from sklearn.datasets import load_digits

digits = load_digits()
mean, std = dense.preprocessing.mean[0], dense.preprocessing.std[0]
images = ((digits.images[..., None] / 16 - mean) / std).astype(np.float32)


def accuracy(model):
  decisions = np.argmax(model(images), -1)
  return f'{100 * np.mean(decisions == digits.target):.1f}%'


{
  'dense': accuracy(dense),
  'absent': accuracy(lv.prune(dense, selection, mode='absent')),
  'identity': accuracy(lv.prune(dense, selection)),
}

# %% [markdown]
# (These are all 1,797 images, most of which the dense model was trained on: they
# show the damage, not the accuracy on new images.)
#
# ## Dilute
# λ goes from 1 to 0 over 300 steps, followed by 150 steps without those attention
# layers.

# %%
stage('dilute')
rows = [
  json.loads(line)
  for line in (WORKDIR / 'metrics.jsonl').read_text().split('\n')
  if line
]
[(row['step'], round(row['lambda'], 2), round(row['loss'], 3)) for row in rows]

# %% [markdown]
# ## Compare
# Accuracy over the 360 test images of the dense model, the pruned model and the
# exported program on its own.

# %%
stage('export')
stage('evaluate')
{
  name: f'{100 * row["top1"]:.2f}% of {row["num_images"]}'
  for name, row in result('evaluation.json').items()
}

# %% [markdown]
# The exported folder loads anywhere: `params/` holds no array of a removed
# attention layer, and `model.safetensors` uses timm's parameter names.

# %%
pruned = lv.load_export(WORKDIR / 'export')
portable = lv.load_pretrained(WORKDIR / 'export' / 'model.safetensors')
assert pruned.removed_layers == selection.removed
difference = np.abs(np.asarray(pruned(images[:64]) - portable(images[:64])))
{
  'parameters': f'{dense.num_parameters:,} -> {pruned.num_parameters:,}',
  'MACs per image': f'{dense.macs():,} -> {pruned.macs():,}',
  'safetensors against params, largest difference of logits': float(
    difference.max()
  ),
}
