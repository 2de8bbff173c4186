r"""A real backbone on street scenes: dense and pruned at equal further steps.

DINOv2 ViT-S/14 with the decoder `linear` on CamVid, 11 classes, whole images of
320 x 240 scaled to 112 x 154 pixels (88 patches). The dense network is trained for
some epochs; every row then takes the same further epochs from it:

  dense more      nothing is removed; what the others are compared with
  nose identity   NOSE's 5 of 12 attention layers by the paper's path, towards x + x,
                  `dense` the teacher
  nose maps       NOSE's 5 in `dense more`, closed-form maps in their place, MLPs
                  refitted, nothing trained after that
  last maps       the last 5 layers, as `nose maps`

  python benchmarks/camvid.py --weights=DIR/dinov2_vits14.safetensors \
    --data=DIR/camvid --workdir=runs/camvid [--epochs 10] [--more-epochs 6]

128 of the training images are held out for choices and fits. Mean IoU is over all
test images; its difference to `dense more` has half its paired 95% interval. Every
row has its own workdir, so the script resumes where it was stopped, in the middle of
a row, too. Writes docs/benchmarks/camvid.json.
"""

import argparse
import pathlib
from typing import Any

import common
import numpy as np

from lambda_vit_jax.cli.stages import finished, registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.evaluation import changes, confusion
from lambda_vit_jax.models.model import Model

OUTPUT = common.RESULTS / 'camvid.json'
CONFIG = 'ade20k_upernet_deit_base.py:linear'
CLASSES, HELD_OUT = 11, 128
SETTINGS = (
  '--config.model.variant=vit_small_patch14_dinov2',
  '--config.model.image_size=(112, 154)',
  '--config.model.dtype=float32',
  f'--config.segment.num_classes={CLASSES}',
  '--config.segment.reduce_zero_label=False',
  '--config.segment.evaluation=whole',
  '--config.segment.stride=100',
  '--config.segment.scale=(0.9, 1.5)',
  f'--config.data.holdout_images={HELD_OUT}',
  '--config.data.workers=0',
  '--config.batch_size=16',
  *(
    f'--config.{stage}.{option}'
    for stage in ('pretrain', 'dilute')
    for option in (
      'learning_rate=1e-4',
      'schedule=cosine',
      'warmup_steps=20',
      'drop_path_rate=0',
    )
  ),
  '--config.log_every=20',
  '--config.checkpoint_every=50',
)
MAPS = (
  '--config.method=linearize',
  "--config.linearize.inputs=('token', 'mean')",
  '--config.linearize.refit=True',
)
# What chooses the layers whose attention becomes maps.
FITTED = {'nose maps': 'transfer_entropy', 'last maps': 'last'}
# The part of the further epochs while λ falls: the paper's, 300 of 400 epochs.
SHARE = 0.75


def open_run(options: argparse.Namespace, name: str, *more: str) -> Run:
  """Opens the workdir of one row."""
  return common.open_run(
    f'{common.ROOT}/configs/{CONFIG}',
    str(options.workdir / name.replace(' ', '-')),
    f'--config.data.source=segmentation_folder:{options.data}',
    f'--config.seed={options.seed}',
    *SETTINGS,
    *more,
  )


def trained(
  options: argparse.Namespace, name: str, init: str, epochs: int
) -> Run:
  """A run with a dense network after so many epochs."""
  run = open_run(
    options,
    name,
    f'--config.init={init}',
    f'--config.pretrain.steps={epochs}ep',
  )
  registry.run_stage(run, 'pretrain')
  return run


def diluted(options: argparse.Namespace) -> Model:
  """`dense` with NOSE's layers diluted into x + x."""
  falling = max(1, round(SHARE * options.more_epochs))
  run = open_run(
    options,
    'nose identity',
    f'--config.init={options.workdir / "dense"}',
    '--config.pretrain.steps=0',
    f'--config.dilute.dilution_steps={falling}ep',
    f'--config.dilute.settle_steps={options.more_epochs - falling}ep',
    '--config.dilute.distill=soft',
  )
  for stage in ('pretrain', 'select', 'dilute'):
    registry.run_stage(run, stage)
  return finished.pruned_model(run)


def fitted(options: argparse.Namespace, name: str) -> Model:
  """`dense more` with maps for the layers of one of `FITTED`."""
  run = open_run(
    options,
    name,
    f'--config.init={options.workdir / "dense-more"}',
    '--config.pretrain.steps=0',
    f'--config.select.criterion={FITTED[name]}',
    *MAPS,
  )
  for stage in ('pretrain', 'select', 'linearize'):
    registry.run_stage(run, stage)
  return finished.pruned_model(run)


def confusions(run: Run, model: Model) -> np.ndarray:
  """`[images, classes, classes]`: pixels of each test image."""
  found = []
  for batch in run.eval_batches(model.preprocessing):
    predicted = np.asarray(model(batch['image'])).argmax(axis=-1)
    labels = np.where(batch['label'] == IGNORED, -1, batch['label'])
    for keep, truth, guess in zip(
      batch['mask'], labels, predicted, strict=True
    ):
      if keep:
        found.append(confusion.confusion_matrix(truth, guess, CLASSES))
  return np.stack(found)


def mean_iou(matrices: np.ndarray) -> float:
  return confusion.scores(matrices.sum(axis=0))['mean_iou']


def compared(ours: np.ndarray, dense: np.ndarray) -> dict[str, Any]:
  """Mean IoU, its difference to the dense network's and half its interval."""
  areas = [np.stack([*map(confusion.areas, part)]) for part in (ours, dense)]
  return {'mean_iou': mean_iou(ours), 'change': changes.iou_difference(*areas)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--weights', required=True)
  parser.add_argument('--data', required=True)
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  parser.add_argument('--epochs', type=int, default=10)
  parser.add_argument('--more-epochs', type=int, default=6)
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  # Absolute, since the configs of other workdirs name it.
  options.workdir = options.workdir.absolute()
  start = trained(options, 'dense', options.weights, options.epochs)
  run = trained(
    options,
    'dense more',
    str(options.workdir / 'dense'),
    options.more_epochs,
  )
  more = run.load('pretrain')
  dense = confusions(run, more)
  begun = confusions(run, start.load('pretrain'))
  rows: dict[str, Any] = {
    'dense': {'mean_iou': mean_iou(begun)},
    'dense more': {'mean_iou': mean_iou(dense)},
  }
  for name in ('nose identity', *FITTED):
    model = fitted(options, name) if name in FITTED else diluted(options)
    rows[name] = {
      **compared(confusions(run, model), dense),
      'removed': model.removed_layers,
      'attention_modes': model.attention_modes,
      'speedup': more.macs(executed=True) / model.macs(executed=True),
      'parameters': model.num_parameters,
    }
    common.write(
      options.output,
      {
        **common.provenance(),
        'config': CONFIG,
        'settings': SETTINGS,
        'epochs': options.epochs,
        'more_epochs': options.more_epochs,
        'seed': options.seed,
        'test_images': len(dense),
        'rows': rows,
      },
    )
    print(name, rows[name], flush=True)


if __name__ == '__main__':
  main()
