r"""Fashion-MNIST from its four idx files: 5 of 12 attention layers out.

A dense 12-block ViT (patch 7, width 48) is trained from scratch, then NOSE,
dilution, export and measurements. Debian's package `dataset-fashion-mnist`
installs the real files; or put the four `.gz` files into a folder.

  lambda-vit run --config=configs/fashion_mnist.py --workdir=runs/fashion \
    --config.data.source=idx_folder:DIR

Arguments: `:runlocal` is a smoke run of a few steps.

Hardware and time: ten minutes per model on one CPU core with 10,000 of the
training images; with all 60,000 not measured. Accuracy with 10,000:
docs/results.md; with all: not verified.
"""

import ml_collections
from lambda_vit_jax.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; see the module's head for `argument`."""
  chosen = common.parse_argument(argument, runlocal=False)
  config = common.base()
  config.batch_size = 256
  config.data.source = 'idx_folder:/usr/share/datasets/fashion-mnist'
  config.data.holdout_images = 2000
  augment = config.data.augment
  augment.kind = 'affine'
  augment.rotation = 8.0
  augment.shift = 0.08
  augment.scale = 0.1
  augment.flip = 0.5
  config.model.variant = 'vit_mini_patch7_28'

  config.pretrain.steps = '20ep'
  config.pretrain.learning_rate = 2e-3
  config.pretrain.warmup_steps = '1ep'

  config.select.num_layers = 5
  config.dilute.learning_rate = 5e-4
  config.dilute.warmup_steps = 20
  config.dilute.dilution_steps = '8ep'
  config.dilute.settle_steps = '4ep'

  if chosen['runlocal']:
    config.batch_size = 16
    config.data.holdout_images = 128
    config.pretrain.steps = 4
    config.pretrain.warmup_steps = 1
    config.dilute.warmup_steps = 1
    config.dilute.dilution_steps = 2
    config.dilute.settle_steps = 2
    config.log_every = config.checkpoint_every = 2
    config.benchmark.rounds = 2
  return config
