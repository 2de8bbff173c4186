r"""Speed of the NOSE search against a plain loop over full forward passes.

  python benchmarks/nose_speed.py [--images 64] [--repeats 3]

DeiT-T at 224 pixels, 5 of 12 layers, random weights and images. Round by round,
the wavefront and the plain loop take turns on the same images, with all
programs compiled in advance. The plain loop is in its fastest form: one program
per variant, skipped attention is not computed, and the last block computes the
class token only. With the extra `[parity]` installed, the plain loop in eager
PyTorch and timm takes its turn too. Writes docs/benchmarks/nose_speed.json.
"""

import argparse
import importlib.util
import json
import pathlib
import time
from collections.abc import Callable

import common
import numpy as np
from plain_loop import plain_loop

from lambda_vit_jax.analysis.images import ImageSet, read_images
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.runtime import startup
from lambda_vit_jax.selection.criteria import TrialCriterion, choose
from lambda_vit_jax.selection.trials import Trial, TrialRunner

VARIANT = 'deit_tiny_patch16_224'
NUM_LAYERS = 5


def timm_round(images: ImageSet, micro_batch: int) -> Callable:
  """A round of the plain loop in eager PyTorch; skipped attention is not run."""
  import timm
  import torch

  torch.manual_seed(0)
  network = timm.create_model(VARIANT, pretrained=False).eval()
  batches = [
    torch.from_numpy(np.asarray(batch['image']).transpose(0, 3, 1, 2).copy())
    for batch in images.micro_batches(micro_batch)
  ]

  def without_attention(block):
    return lambda x, *_, **__: (
      x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    )

  def evaluate(variants: list[Trial]) -> None:
    for variant in variants:
      whole = {i: network.blocks[i].forward for i in variant}
      for i in variant:
        network.blocks[i].forward = without_attention(network.blocks[i])
      with torch.inference_mode():
        np.concatenate([network(batch).numpy() for batch in batches]).std(0)
      for i, forward in whole.items():
        network.blocks[i].forward = forward

  return evaluate


def rounds_of(model: Model, images: ImageSet) -> list[list[Trial]]:
  """The variants of every round; the first round includes the base."""
  runner = TrialRunner(model, images)
  scorer = TrialCriterion('transfer_entropy', runner, 0, 0)
  removed: Trial = ()
  rounds = []
  for index in range(NUM_LAYERS):
    left = [i for i in range(model.depth) if i not in removed]
    trials = [tuple(sorted((*removed, i))) for i in left]
    rounds.append(([()] if index == 0 else []) + trials)
    chosen = choose(scorer(removed, left).values)
    removed = tuple(sorted((*removed, chosen)))
  return rounds


def entropies(found: dict) -> np.ndarray:
  return np.asarray(
    [np.log(found[key].pooled().std).sum() for key in sorted(found)]
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--micro-batch', type=int, default=16)
  parser.add_argument('--output', default='docs/benchmarks/nose_speed.json')
  options = parser.parse_args()

  # As the stages do.
  startup.keep_memory()
  model = create_model(VARIANT)
  shape = (*model.module.image_size, model.module.in_chans)
  pixels = np.random.default_rng(0).normal(size=(options.images, *shape))
  images = read_images([pixels.astype(np.float32)], model)
  few = read_images([pixels[: options.micro_batch].astype(np.float32)], model)
  rounds = rounds_of(model, images)
  runner = TrialRunner(model, images)

  def loop(variants: list[Trial], chosen: ImageSet = images) -> dict:
    return plain_loop(model, chosen, variants, micro_batch=options.micro_batch)

  programs = {'wavefront': runner.evaluate, 'plain_loop': loop}
  if importlib.util.find_spec('timm') and importlib.util.find_spec('torch'):
    programs['timm_eager'] = timm_round(images, options.micro_batch)
  else:
    print('timm and torch are not installed: no PyTorch column')
  for index, variants in enumerate(rounds):
    print(f'compiling the plain loop, round {index + 1}', flush=True)
    loop(variants, few)

  seconds = {name: [] for name in programs}
  for _ in range(options.repeats):
    total = dict.fromkeys(programs, 0.0)
    for variants in rounds:
      for name, evaluate in programs.items():
        began = time.perf_counter()
        evaluate(variants)
        total[name] += time.perf_counter() - began
    for name, value in total.items():
      seconds[name].append(value)
    print({name: f'{value:.1f} s' for name, value in total.items()}, flush=True)

  difference = np.abs(
    entropies(runner.evaluate(rounds[0])) - entropies(loop(rounds[0]))
  )
  median = {name: float(np.median(values)) for name, values in seconds.items()}
  result = {
    'what': f'NOSE search, {NUM_LAYERS} of {model.depth}, all rounds, '
    'compilation excluded',
    'variant': VARIANT,
    'num_images': options.images,
    'micro_batch': {
      'wavefront': runner.micro_batch,
      'others': options.micro_batch,
    },
    'rounds': len(rounds),
    'forwards_of_the_loop': sum(len(variants) for variants in rounds),
    'seconds': seconds,
    'median_seconds': median,
    'speedup': {
      name: value / median['wavefront']
      for name, value in median.items()
      if name != 'wavefront'
    },
    'largest_difference_nats_per_channel': float(
      difference.max() / model.num_classes
    ),
    **common.provenance(),
  }
  path = pathlib.Path(options.output)
  common.write(path, result)
  print(json.dumps(result['speedup']), '->', path)


if __name__ == '__main__':
  main()
