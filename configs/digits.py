r"""The quickstart: 5 of 12 attention layers out of a ViT for digits.

Starts from a dense model that ships with the package, chooses by NOSE,
dilutes, exports, and measures.

  lambda-vit run --config=configs/digits.py --workdir=runs/digits

Arguments: `:runlocal` is a smoke run of seconds; `:scratch` trains the dense
model first, which is how the shipped one was made.

Hardware and time: 2 CPU cores, under 5 minutes.
"""

import ml_collections
from lambda_vit_jax.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; see the module's head for `argument`."""
  chosen = common.parse_argument(argument, runlocal=False, scratch=False)
  config = common.base()
  config.batch_size = 64
  config.init = 'builtin:vit_mini_patch2_8_digits'

  config.data.source = 'digits'
  config.data.holdout_images = 200
  augment = config.data.augment
  augment.kind = 'affine'
  augment.rotation = 12.0
  augment.shift = 0.1
  augment.scale = 0.15
  augment.aspect = 0.1
  augment.shear = 0.1
  config.model.variant = 'vit_mini_patch2_8'

  config.pretrain.learning_rate = 2e-3
  config.pretrain.warmup_steps = 200
  config.pretrain.drop_path_rate = 0.05
  config.pretrain.steps = 0
  if chosen['scratch']:
    config.init = ''
    config.pretrain.steps = 8000

  config.select.num_layers = 5
  config.dilute.learning_rate = 5e-4
  config.dilute.warmup_steps = 20
  config.dilute.dilution_steps = 300
  config.dilute.settle_steps = 150
  config.log_every = 50
  config.checkpoint_every = 250

  if chosen['runlocal']:
    config.batch_size = 8
    config.pretrain.steps = 4 if chosen['scratch'] else 0
    config.pretrain.warmup_steps = 1
    config.dilute.warmup_steps = 1
    config.dilute.dilution_steps = 4
    config.dilute.settle_steps = 2
    config.compress.target_speedup = 1.1
    config.log_every = config.checkpoint_every = 2
    config.benchmark.rounds = 3
  return config
