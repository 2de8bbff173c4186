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
# For your weights and images: which attention layers can be removed, how many
# decisions stay the same without training, how fast the smaller model is on this
# machine, and files that other programs read. It takes two minutes on a CPU with
# the example weights and images.

# %%
# A fresh Colab has JAX for its CPU, GPU or TPU: what is installed stays as it is.
import importlib.metadata
import subprocess
import sys

from packaging.requirements import Requirement

REPOSITORY = 'https://github.com/OWNER/lambda_vit_jax'
NEEDED = [
  'absl-py>=2.1',
  'etils[epath]>=1.9',
  'flatbuffers>=24.3',
  'flax>=0.12,<0.14',
  'grain>=0.2.12,<0.4',
  'importlib_resources>=6',
  'jax>=0.10,<0.13',
  'matplotlib>=3.9',
  'ml-collections>=1.0',
  'numpy>=2.0',
  'optax>=0.2.5,<0.4',
  'orbax-checkpoint>=0.11.20,<0.13',
  'pillow>=11',
  'rich>=13',
  'safetensors>=0.5',
  'scikit-learn>=1.5',
  'scipy>=1.13',
  'tensorflow-datasets>=4.9.9,<5',
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
# Fill these in. `WEIGHTS`: a `.safetensors` or `.npz` file, a folder, an export,
# or `hf-hub:timm/NAME` (needs `huggingface_hub`). `IMAGES`: a folder with
# `train/CLASS/*.jpg` and `val/CLASS/*.jpg`. `VARIANT`: a name from `lambda-vit
# models`, where the weights do not name it. Where one is None, an example is used.

# %%
WEIGHTS = None
IMAGES = None
VARIANT = None

# %%
import pathlib
import tempfile
import time

import jax
import numpy as np
from PIL import Image

import lambda_vit_jax as lv
from lambda_vit_jax.main import main

FOLDER = pathlib.Path(tempfile.mkdtemp())

if WEIGHTS is None:
  example = lv.load_pretrained('builtin:vit_mini_patch2_8_digits')
  lv.export(example, FOLDER / 'weights', formats=('safetensors',))
  WEIGHTS = FOLDER / 'weights' / 'model.safetensors'

if IMAGES is None:
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
# ## The weights

# %%
model = lv.load_pretrained(WEIGHTS, variant=VARIANT)
model.variant, model.num_parameters, model.preprocessing

# %% [markdown]
# ## The images
# `lambda-vit check-data image_folder:DIR` reads every image once and reports what
# it found.

# %%
assert main(['check-data', f'image_folder:{IMAGES}']) == 0

# %% [markdown]
# A few hundred images of the training split are enough to choose layers.


# %%
def read(path):
  """One image as the model expects it: resized, centre-cropped, normalised."""
  wanted = model.preprocessing
  height, width = wanted.image_size
  image = Image.open(path).convert('L' if wanted.channels == 1 else 'RGB')
  scale = max(height / image.height, width / image.width) / wanted.crop_ratio
  if scale != 1:
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
  left, top = (image.width - width) // 2, (image.height - height) // 2
  image = image.crop((left, top, left + width, top + height))
  array = np.asarray(image, np.float32).reshape(height, width, -1) / 255
  mean, std = (np.asarray(v, np.float32) for v in (wanted.mean, wanted.std))
  return (array - mean) / std


files = sorted(
  path
  for path in pathlib.Path(IMAGES).glob('train/*/*')
  if path.suffix.lower() in ('.png', '.jpg', '.jpeg')
)
rng = np.random.default_rng(0)
chosen = rng.choice(files, min(256, len(files)), replace=False)
images = np.stack([read(path) for path in chosen])
batches = np.split(images, np.arange(64, len(images), 64))
images.shape

# %% [markdown]
# ## Choose layers

# %%
selection = lv.nose(model, batches, num_layers=5)
selection

# %%
pruned = lv.prune(model, selection, mode='absent')
same = np.argmax(pruned(images), -1) == np.argmax(model(images), -1)
f'{100 * same.mean():.1f}% of decisions unchanged before any training'

# %% [markdown]
# ## Export
# Each file is read back and its logits compared before the folder appears.

# %%
report = lv.export(pruned, FOLDER / 'export', check_images=images[:8])
report

# %% [markdown]
# ## Time it
# The programs run in turn, so that a slow moment affects all of them. Each call
# waits for its result, and the first calls, which compile, are not counted.
# `stablehlo` is the exported program, run by JAX without this package.

# %%
import jax.export

program = jax.export.deserialize(
  bytearray((FOLDER / 'export' / 'model.stablehlo').read_bytes())
)
batch = images[:32]
calls = {'dense': model, 'pruned': pruned, 'stablehlo': jax.jit(program.call)}
seconds = {name: [] for name in calls}
for turn in range(12):
  for name, call in calls.items():
    start = time.perf_counter()
    jax.block_until_ready(call(batch))
    if turn >= 2:
      seconds[name].append(time.perf_counter() - start)
{
  name: f'{len(batch) / np.median(values):,.0f} images/s (fastest '
  f'{len(batch) / min(values):,.0f}, slowest {len(batch) / max(values):,.0f})'
  for name, values in seconds.items()
}

# %% [markdown]
# ## Train the smaller model
# The same from the command line, with dilution. It trains only a few steps, to
# show that it works; for a real run use `--config.dilute.dilution_steps=30ep` or
# more, and see `docs/data.md` for a config of your own.

# %%
code = main(
  [
    'run',
    '--config=configs/digits.py:runlocal',
    f'--workdir={FOLDER / "run"}',
    f'--config.init={WEIGHTS}',
    f'--config.model.variant={model.variant}',
    f'--config.data.source=image_folder:{IMAGES}',
    '--quiet',
  ]
)
assert code == 0
