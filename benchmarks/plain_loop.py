"""One full forward per trial: the reference that `TrialRunner` is checked by."""

from collections.abc import Iterable

import jax
import numpy as np

from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.selection.trial_readout import Target, target_values
from lambda_vit_jax.selection.trials import Trial


def plain_loop(
  model: Model,
  images: ImageSet,
  variants: Iterable[Trial],
  target: Target = 'logits',
  micro_batch: int = 16,
  one_program: bool = False,
) -> dict[Trial, HostMoments]:
  """The same moments by one full forward per variant: the reference.

  Args:
    model: as for `TrialRunner`.
    images: as for `TrialRunner`.
    variants: blocks to leave out, in mode `skip`.
    target: `logits`, `features` or `loss`.
    micro_batch: images per forward.
    one_program: False is the fastest form: each variant compiles a program
      in which the attention left out is not computed. True compiles one, in
      which it is multiplied by zero.

  Returns:
    Per variant moments of all images, without leading axes.
  """
  found = {}
  for variant in sorted({tuple(sorted(variant)) for variant in variants}):
    module, factor = _loop_module(model, variant, one_program)
    state = moments.empty(1 if target == 'loss' else _width(module, target))
    for batch in images.micro_batches(micro_batch):
      logits, taps = forward(module, model.params, batch['image'], factor)
      values = _loop_values(target, logits, taps['features'], batch['label'])
      state = moments.update(state, values, batch['mask'])
    found[variant] = moments.to_host(state)
  return found


_loop_values = jax.jit(
  lambda target, logits, features, labels: target_values(
    target, logits, {'features': features}, labels
  ),
  static_argnums=0,
)


def _width(module: ViT, target: Target) -> int:
  if target == 'features' or not module.num_classes:
    return module.embed_dim
  return module.num_classes


def _loop_module(
  model: Model, variant: Trial, one_program: bool
) -> tuple[ViT, np.ndarray | None]:
  """A module in which the variant's attention counts for nothing."""
  modes = list(model.attention_modes)
  factor = None
  if one_program:
    factor = np.ones(model.depth, np.float32)
    factor[list(variant)] = 0.0
    modes = ['diluted' if mode == 'full' else mode for mode in modes]
    return model.module.clone(
      attention_modes=tuple(modes), compensation=False
    ), factor
  for index in variant:
    modes[index] = 'skip' if modes[index] == 'full' else 'absent'
  return model.module.clone(attention_modes=tuple(modes)), factor
