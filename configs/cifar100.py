r"""CIFAR-100 from pretrained weights, at 224 px: 5 of 12 attention layers out.

DeiT-B's official ImageNet weights (extra `hub`) get a head for 100 classes and
are fine-tuned; then NOSE, dilution with distillation from the fine-tuned dense
model, export and measurements. Prepare the data set once with
`tfds build cifar100 --file_format=array_record`, where TensorFlow is.

  lambda-vit run --config=configs/cifar100.py --workdir=runs/cifar100

A model that is pruned already keeps its removed blocks through fine-tuning;
`:pruned` takes no further layers out:

  lambda-vit run --config=configs/cifar100.py:pruned --workdir=runs/transfer \
    --config.init=EXPORT_DIR

Arguments: `:pruned` see above; `:runlocal` is a smoke run of a few steps on
digits with the network that ships with the package.

Hardware and time: written for 8 accelerators of 16 GB or more; not measured.
Published top-1: 90.8 for dense DeiT-B fine-tuned on CIFAR-100 at 224 px
(arXiv 2012.12877, with SGD over 1000 epochs; this schedule is shorter). For a
pruned model no figure is published. Ours: not verified.
"""

import ml_collections
from lambda_vit_jax.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; see the module's head for `argument`."""
  chosen = common.parse_argument(argument, pruned=False, runlocal=False)
  config = common.base()
  config.batch_size = 256
  config.init = 'hf-hub:timm/deit_base_patch16_224.fb_in1k'
  config.data.source = 'tfds:cifar100'
  config.data.holdout_images = 2000
  config.data.workers = 8
  config.data.augment.kind = 'deit'
  # A twelfth of 32 pixels shows nothing.
  config.data.augment.crop_area = (0.4, 1.0)
  config.model.variant = 'deit_base_patch16_224'
  config.model.image_size = 224
  config.model.crop_ratio = 1.0
  config.model.dtype = 'bfloat16'

  config.pretrain.steps = '30ep'
  config.pretrain.learning_rate = 2e-4
  config.pretrain.final_learning_rate = 1e-6
  config.pretrain.warmup_steps = '2ep'
  config.pretrain.layer_decay = 0.75
  for stage in (config.pretrain, config.dilute):
    stage.mixup = 0.8
    stage.cutmix = 1.0
    stage.drop_path_rate = 0.1

  config.select.num_layers = 5
  config.dilute.learning_rate = 1e-4
  config.dilute.final_learning_rate = 1e-6
  config.dilute.warmup_steps = '1ep'
  config.dilute.dilution_steps = '30ep'
  config.dilute.settle_steps = '20ep'
  config.dilute.distill = 'soft'

  if chosen['runlocal']:
    common.smoke(config)
    config.data.augment.crop_area = (0.8, 1.0)
    config.pretrain.steps = 4
    config.pretrain.warmup_steps = 1
  if chosen['pruned']:
    config.select.num_layers = 0
    config.dilute.distill = 'none'
    config.dilute.dilution_steps = config.dilute.settle_steps = 0
  return config
