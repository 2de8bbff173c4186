r"""DeiT-Small on ImageNet-1k, the paper's recipe.

  lambda-vit run --config=configs/imagenet_deit_small.py --workdir=DIR

Arguments: `:select` lets NOSE choose the layers on the official weights
instead of taking the published set; `:short` trains 20 + 10 epochs with
distillation; `:runlocal` is a smoke run on digits.

As in the recipe, an epoch has 625 steps and mixing draws once per 256 images.
`:select` holds 10,000 training images out, which leaves 620 steps.

Hardware and time: the authors used 8 GPUs and 400 epochs; here not measured.
Published top-1: dense 79.9; 80.31 with {0, 2, 4}, 79.90 with {0, 2, 4, 6}. Ours: not verified.
"""

import ml_collections
from lambda_vit_jax.configs import common


def get_config(argument: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; see the module's head for `argument`."""
  return common.imagenet_deit('small', (0, 2, 4, 6), argument)
