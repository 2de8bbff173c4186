r"""DeiT-Base with UperNet on ADE20k at 512 px: 5 of 12 attention layers out.

DeiT-B's official ImageNet weights (extra `hub`) get a decoder and are trained
on scenes with 150 classes; then NOSE on the backbone's final features,
dilution, export and measurements. Unpack ADEChallengeData2016.zip first
(http://sceneparsing.csail.mit.edu), here, or set data.source.

  lambda-vit run --config=configs/ade20k_upernet_deit_base.py --workdir=runs/ade

Arguments: `:linear` takes one affine map of each token for the decoder;
`:runlocal` is a smoke run of a few steps on digits laid on textures.

Evaluation differs from the recipe, which runs the network once over each image,
at 512 px on its shorter side, with position embeddings interpolated to its size.
Here windows of 512 px slide over the image at that scale, 341 px apart;
`--config.segment.evaluation=whole` shrinks the image to fit one window. 1,000
training images are held out for selection.

Hardware and time: written for 8 accelerators of 40 GB or more; not measured.
Published mean IoU: 45.46 for dense DeiT-B with this decoder after the same
160,000 steps of 16 images, by the authors of MMSegmentation (with batch norms
and an auxiliary head, which this decoder does not have). The paper reports
ADE20k for pruned models; its code for that was never released. Ours: not
verified.
"""

import ml_collections
from lambda_vit_jax.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; see the module's head for `argument`."""
  chosen = common.parse_argument(argument, linear=False, runlocal=False)
  config = common.base()
  config.task = 'segment'
  config.batch_size = 16
  config.init = 'hf-hub:timm/deit_base_patch16_224.fb_in1k'
  config.data.source = 'segmentation_folder:ADEChallengeData2016'
  config.data.holdout_images = 1000
  config.data.workers = 16
  config.model.variant = 'deit_base_patch16_224'
  config.model.image_size = 512
  config.model.dtype = 'bfloat16'

  segment = config.segment
  segment.decoder = 'linear' if chosen['linear'] else 'upernet'
  segment.num_classes = 150
  segment.reduce_zero_label = True
  segment.evaluation = 'slide'
  segment.stride = 341

  for stage in (config.pretrain, config.dilute):
    stage.learning_rate = 6e-5
    stage.final_learning_rate = 0.0
    stage.schedule = 'poly'
    stage.warmup_steps = 1500
    stage.weight_decay = 0.01
    stage.clip_norm = 0.0
    stage.drop_path_rate = 0.1
    stage.label_smoothing = 0.0
  config.pretrain.steps = 160_000

  config.select.num_layers = 5
  config.select.target = 'features'
  config.dilute.dilution_steps = 120_000
  config.dilute.settle_steps = 40_000
  config.export.formats = ('orbax', 'stablehlo')
  config.benchmark.batch_size = 2
  config.log_every = 50
  config.checkpoint_every = 8000

  if chosen['runlocal']:
    common.smoke(config)
    config.init = ''
    config.model.variant = 'vit_nano_patch2_8'
    config.model.image_size = 24
    segment.channels = 16
    segment.num_classes = 11
    segment.reduce_zero_label = False
    segment.stride = 16
    config.pretrain.steps = 2
    config.pretrain.warmup_steps = 1
    config.select.num_layers = 1
  return config
