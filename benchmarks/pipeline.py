"""Images per second and core: our input pipeline against timm's DataLoader.

  python benchmarks/pipeline.py [--rounds=7] [--batches=8]

Both read the same JPEGs (500 x 375 as in ImageNet, and larger, made here from
scikit-learn's two photographs in a temporary folder) and do what DeiT does at
224 px: bicubic random resized crop, flip, RandAugment rand-m9-mstd0.5-inc1,
normalisation, random erasing at 0.25. timm's side is its RandAugment and
RandomErasing under a PyTorch DataLoader, once with everything in the worker
(ToTensor, Normalize) and once with timm's own uint8 collation and normalisation
of whole batches; ours is compared with both. torchvision is not needed: its
RandomResizedCrop is written here from its documentation.

One process on one core alternates between them, without worker processes. All
CPU time of the process is counted against all images read from disk (ours reads
ahead in a thread). Since machines are shared, images per second of CPU time
decide; wall-clock rates are reported too. Needs the extra `[parity]`. Writes
docs/benchmarks/pipeline.json; exits 1 if the median of the rounds' ratios is
below 1.2 at any size.
"""

import argparse
import datetime
import io
import math
import os
import pathlib
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import numpy as np
from absl import flags
from PIL import Image, ImageOps, features

RATIO_BOUND = 1.2
OUTPUT = common.RESULTS / 'pipeline.json'
POLICY = 'rand-m9-mstd0.5-inc1'
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 224
WIDTHS = (500, 1000, 2000)


def write_photographs(folder: str, number: int, size: tuple[int, int]) -> float:
  """Crops of real photographs as JPEGs; returns their mean size in bytes."""
  from sklearn.datasets import load_sample_images

  rng = np.random.default_rng(0)
  originals = [Image.fromarray(array) for array in load_sample_images().images]
  total = 0
  for index in range(number):
    image = originals[index % len(originals)]
    height = int(image.height * rng.uniform(0.8, 1.0))
    width = min(image.width, height * size[0] // size[1])
    left = rng.integers(image.width - width + 1)
    top = rng.integers(image.height - height + 1)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize(size, Image.Resampling.BICUBIC)
    place = pathlib.Path(folder) / 'train' / f'{index % 10}'
    place.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=95)
    (place / f'{index:04d}.jpg').write_bytes(buffer.getvalue())
    total += len(buffer.getvalue())
  return total / number


# --- timm's side ------------------------------------------------------------


class RandomResizedCrop:
  """What torchvision's class of that name does, for PIL images."""

  def __call__(self, image: Image.Image) -> Image.Image:
    return image.crop(self.box(*image.size)).resize(
      (SIZE, SIZE), Image.Resampling.BICUBIC
    )

  def box(self, width: int, height: int) -> tuple[int, int, int, int]:
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
      area = width * height * random.uniform(0.08, 1.0)
      aspect = math.exp(random.uniform(low, high))
      w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
      if 0 < w <= width and 0 < h <= height:
        left, top = random.randint(0, width - w), random.randint(0, height - h)
        return left, top, left + w, top + h
    # The photographs here are 4:3, which is always allowed.
    return 0, 0, width, height


def timm_batches(
  folder: str, batch_size: int, workers: int, in_worker: bool
) -> Iterator:
  """Endless batches, float32 `[batch, 3, 224, 224]`, normalised and erased."""
  import torch
  from timm.data.auto_augment import NAME_TO_OP, rand_augment_transform
  from timm.data.loader import PrefetchLoader, fast_collate
  from timm.data.random_erasing import RandomErasing

  # Pillow 13 refuses to keep 0 bits, which timm's policy asks for; earlier
  # versions return black.
  NAME_TO_OP['PosterizeIncreasing'] = lambda image, bits, **_: (
    ImageOps.posterize(image, bits)
    if bits
    else Image.new(image.mode, image.size)
  )
  policy = rand_augment_transform(
    POLICY,
    {
      'translate_const': int(SIZE * 0.45),
      'img_mean': tuple(round(255 * value) for value in MEAN),
      'interpolation': Image.Resampling.BICUBIC,
    },
  )
  crop = RandomResizedCrop()
  erasing = RandomErasing(0.25, mode='pixel', max_count=1, device='cpu')
  mean = torch.tensor(MEAN).view(3, 1, 1)
  std = torch.tensor(STD).view(3, 1, 1)

  class Photographs(torch.utils.data.Dataset):
    def __init__(self):
      self.files = sorted(pathlib.Path(folder).glob('train/*/*.jpg'))

    def __len__(self) -> int:
      return 10**7

    def __getitem__(self, index: int):
      path = self.files[index % len(self.files)]
      with path.open('rb') as file:
        image = Image.open(file).convert('RGB')
      image = crop(image)
      if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
      image = policy(image)
      label = int(path.parent.name)
      if not in_worker:
        pixels = np.array(image, dtype=np.uint8)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), label
      tensor = torch.from_numpy(np.array(image, dtype=np.uint8))
      tensor = tensor.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
      return erasing(tensor.sub_(mean).div_(std)), label

  loader = torch.utils.data.DataLoader(
    Photographs(),
    batch_size,
    num_workers=workers,
    collate_fn=None if in_worker else fast_collate,
    persistent_workers=False,
  )
  if not in_worker:
    loader = PrefetchLoader(
      loader,
      mean=MEAN,
      std=STD,
      device=torch.device('cpu'),
      re_prob=0.25,
      re_mode='pixel',
      re_count=1,
    )
  return iter(loader)


# --- ours -------------------------------------------------------------------


def our_batches(
  folder: str, batch_size: int, workers: int, read: list[int]
) -> Iterator:
  """Endless batches, float32 `[batch, 224, 224, 3]`, normalised and erased."""
  from lambda_vit_jax.core.preprocessing import Preprocessing
  from lambda_vit_jax.data import pipeline
  from lambda_vit_jax.data.augment import RECIPES
  from lambda_vit_jax.data.sources import image_folder as folder_source

  root = pathlib.Path(folder) / 'train'
  files = sorted(str(path.relative_to(root)) for path in root.glob('*/*.jpg'))

  class Counting(folder_source.FolderSource):
    def __getitem__(self, index: int):
      read.append(index)
      return super().__getitem__(index)

  source = Counting(
    str(root), tuple(files), tuple(int(name[0]) for name in files)
  )
  # Grain's worker processes read absl's flags.
  flags.FLAGS.mark_as_parsed()
  return pipeline.train_batches(
    source,
    np.arange(len(source)),
    Preprocessing((SIZE, SIZE), MEAN, STD, 0.875, 'bicubic'),
    RECIPES['deit'],
    pipeline.Loading(batch_size, workers=workers),
    seed=0,
  )


# --- timing -----------------------------------------------------------------


def turn(
  make: Callable[[list[int]], Iterator], batch_size: int, batches: int
) -> tuple[float, float]:
  """Images per CPU second and per second of one turn."""
  read: list[int] = []
  cpu, wall = time.process_time(), time.perf_counter()
  iterator = make(read)
  for _ in range(batches):
    next(iterator)
  if hasattr(iterator, 'close'):
    iterator.close()
  del iterator
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  # timm's side reads nothing ahead.
  images = len(read) or batches * batch_size
  return images / cpu, images / wall


def processor() -> str:
  for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
    if line.startswith('model name'):
      return line.partition(':')[2].strip()
  return platform.processor()


def compare_pipelines(width: int, flags: argparse.Namespace) -> dict[str, Any]:
  """Times all pipelines in turn, on photographs of one size."""
  size = (width, width * 3 // 4)
  with tempfile.TemporaryDirectory() as folder:
    file_bytes = write_photographs(folder, flags.photographs, size)
    sides: dict[str, Callable[[list[int]], Iterator]] = {
      'ours': lambda read: our_batches(folder, flags.batch_size, 0, read),
      'timm_in_worker': lambda read: timm_batches(
        folder, flags.batch_size, 0, in_worker=True
      ),
      'timm_collated': lambda read: timm_batches(
        folder, flags.batch_size, 0, in_worker=False
      ),
    }
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    wall: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(flags.rounds + 1):
      for name, make in sides.items():
        rates = turn(make, flags.batch_size, flags.batches)
        # The first round imports and fills caches.
        if number:
          cpu[name].append(rates[0])
          wall[name].append(rates[1])
  medians = {name: statistics.median(values) for name, values in cpu.items()}
  others = [name for name in sides if name != 'ours']
  return {
    'size': size,
    'mean_bytes': round(file_bytes),
    'images_per_cpu_second': {
      name: common.spread(v) for name, v in cpu.items()
    },
    'images_per_second': {name: common.spread(v) for name, v in wall.items()},
    'ratios': {
      name: common.spread(
        [a / b for a, b in zip(cpu['ours'], cpu[name], strict=True)]
      )
      | {'of_medians': medians['ours'] / medians[name]}
      for name in others
    },
  }


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--batches', type=int, default=8)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--photographs', type=int, default=256)
  parser.add_argument('--width', type=int, nargs='+', default=WIDTHS)
  flags = parser.parse_args()
  os.environ['CUDA_VISIBLE_DEVICES'] = ''
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

  import timm
  import torch

  torch.set_num_threads(1)
  rows: list[dict[str, Any]] = []
  for width in flags.width:
    rows.append(compare_pipelines(width, flags))
    for name, rate in rows[-1]['images_per_cpu_second'].items():
      print(f'{width} {name:<15} {rate["median"]:7.1f} images per CPU second')
    for name, ratio in rows[-1]['ratios'].items():
      print(f'{width} of {name}: {ratio["median"]:.3f} (bound {RATIO_BOUND})')
    results = {
      'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
      'processor': processor(),
      'cores_used': 1,
      'versions': {
        'python': platform.python_version(),
        'numpy': np.__version__,
        'pillow': Image.__version__,
        'libjpeg_turbo': features.version('libjpeg_turbo'),
        'timm': timm.__version__,
        'torch': torch.__version__,
      },
      'batch_size': flags.batch_size,
      'rounds': flags.rounds,
      'bound': RATIO_BOUND,
      'photographs': rows,
    }
    common.write(OUTPUT, results)
  return int(
    any(
      ratio['median'] < RATIO_BOUND
      for row in rows
      for ratio in row['ratios'].values()
    )
  )


if __name__ == '__main__':
  sys.exit(main())
