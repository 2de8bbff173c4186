"""Stage `dilute`: λ from 1 to 0, then training without the removed layers."""

import dataclasses
from collections.abc import Sequence

from lambda_vit_jax.cli.stages import finished, select
from lambda_vit_jax.cli.stages.training_job import train
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name, modes_without
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training import dilution
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Phase
from lambda_vit_jax.training_free.stand_in import plan_towards


def dilution_steps(run: Run) -> tuple[int, int]:
  """Returns the steps while λ falls, and those without the chosen layers."""
  settings = run.settings.dilute
  return (
    settings.dilution_steps.steps(run.steps_per_epoch),
    settings.settle_steps.steps(run.steps_per_epoch),
  )


def dilute(run: Run) -> None:
  """Lets λ fall from 1 to 0 over the chosen layers, then trains without them.

  With `dilute.start=linear`, attention turns into the maps that `linearize`
  fitted in the first half of the steps, and the maps into the identity in the
  second. With `dilute.towards`, the dense network turns into that of another
  stage.
  """
  dense = run.load('pretrain')
  if run.settings.dilute.stand_in:
    _towards(
      run, dense, finished.load_fitted(run, run.settings.dilute.stand_in)
    )
    return
  layers = select.removed_layers(run, dense.depth)
  compensation = run.settings.dilute.compensation
  diluting, settling = dilution_steps(run)
  modes = dense.attention_modes
  pruned = modes_without(layers, modes, dilution.final_mode(compensation))
  module = dense.module.clone(
    compensation=compensation, merge=run.merge_schedule(dense.module, pruned)
  )
  model = dense.replace(module=module)
  if run.settings.dilute.is_warm:
    fitted = finished.load_linear(run)
    plan = Dilution(layers, diluting, halfway=diluting // 2)
    phases = warm_phases(
      module,
      fitted.module,
      layers,
      halfway=diluting // 2,
      diluting=diluting,
      total=diluting + settling,
    )
    model = model.replace(
      # Describes the checkpoints of the first two phases.
      module=module.clone(linear_inputs=fitted.module.linear_inputs),
      params=with_maps(dense.params, fitted.params, layers),
    )
  else:
    plan = Dilution(layers, diluting)
    phases = (
      Phase(
        module.clone(attention_modes=dilution.diluted_modes(layers, modes)),
        until=diluting,
      ),
      Phase(
        module.clone(attention_modes=pruned),
        until=diluting + settling,
        removed=layers,
      ),
    )
  train(run, 'dilute', model, phases, plan, dense)


def _towards(run: Run, dense: Model, stand_in: Model) -> None:
  """Trains while λ leads from the dense network to its stand-in, and after."""
  plan = plan_towards(dense, stand_in)
  if not plan.after.merge:
    # What merges was not chosen by the search (`compress.parts` with `tokens`).
    merge = run.merge_schedule(dense.module, plan.after.attention_modes)
    plan = dataclasses.replace(
      plan,
      during=plan.during.clone(merge=merge),
      after=plan.after.clone(merge=merge),
    )
  diluting, settling = dilution_steps(run)
  model = dense.replace(module=plan.during, params=plan.params)
  phases = plan.phases(diluting, diluting + settling)
  train(run, 'dilute', model, phases, plan.dilution(diluting), dense)


def warm_phases(
  dense: ViT,
  fitted: ViT,
  layers: tuple[int, ...],
  *,
  halfway: int,
  diluting: int,
  total: int,
) -> tuple[Phase, ...]:
  """Returns phases: attention to map, map to identity, without either.

  Args:
    dense: with `compensation` set.
    fitted: with `layers` in mode `linear`.
    layers: diluted blocks.
    halfway: the step at which the maps have taken over.
    diluting: the step at which the maps are gone.
    total: the last step.
  """
  modes = dilution.diluted_modes(layers, dense.attention_modes)
  module = dense.clone(
    attention_modes=modes, linear_inputs=fitted.linear_inputs
  )
  pruned = modes_without(
    layers, dense.attention_modes, dilution.final_mode(dense.compensation)
  )
  return (
    Phase(module.clone(dilution_path='to_linear'), until=halfway),
    Phase(
      module.clone(dilution_path='from_linear'), until=diluting, linear=layers
    ),
    Phase(dense.clone(attention_modes=pruned), until=total, removed=layers),
  )


def with_maps(dense: Params, fitted: Params, layers: Sequence[int]) -> Params:
  """The dense parameters, and beside each attention in `layers` its map."""
  found = dict(dense)
  for layer in layers:
    name = block_name(layer)
    block = dense[name]
    attn = block['attn'] | fitted[name]['attn']
    found[name] = block | {'attn': attn}
  return found
