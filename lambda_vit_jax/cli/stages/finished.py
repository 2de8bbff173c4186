"""Load the pruned model of a finished run, and what it is compared with."""

from typing import Literal

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.workdir import Run, finished_step
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.edits import drop_blocks
from lambda_vit_jax.models.model import Model

_FITTED = {
  'linearize': stage_table.LINEAR,
  'compress': stage_table.COMPRESSED,
}
"""The result of each stage that makes the pruned model without training."""


def pruned_model(
  run: Run, weights: Literal['raw', 'ema'] | None = None
) -> Model:
  """Loads the model that is exported, evaluated and timed.

  Args:
    run: the workdir.
    weights: other parameters of `dilute` than those of `export.weights`.

  Raises:
    CheckpointError: the stage that makes it has not run.
    ModelError: `model.merge` is more than the tokens allow.
  """
  settings = run.settings
  if settings.method == 'dilute':
    weights = weights or settings.export.weights
    model = run.load('dilute', weights)
    # Blocks of which a compressed network has nothing left.
    dropped = [
      index
      for index, mode in enumerate(model.attention_modes)
      if mode == 'absent' and not model.mlp_dims[index]
    ]
    model = drop_blocks(model, dropped)
    if settings.dilute.stand_in and model.module.merge:
      return model
  else:
    model = load_fitted(run, settings.method)
    if model.module.merge:
      # Chosen by the search (`compress.parts` with `tokens`).
      return model
    fields = run.read_json(_FITTED[settings.method]) or {}
    dropped = fields.get(settings.method, {}).get('dropped', [])
  # The config counts blocks as the dense network does.
  modes = list(model.attention_modes)
  for index in dropped:
    modes.insert(index, 'absent')
  merge = run.merge_schedule(model.module.clone(depth=len(modes)), modes)
  merge = tuple(r for index, r in enumerate(merge) if index not in dropped)
  merge = merge if any(merge) else ()
  return model.replace(module=model.module.clone(merge=merge))


def compared_models(run: Run) -> dict[str, tuple[Model, int]]:
  """Loads every model that is scored, with the steps it was trained.

  Returns:
    By name, in the order of tables: `dense`; `baseline`, the dense model
    trained as long as the pruned one, if the config asks for it and it is
    there; `pruned`; and, if `dilute` kept an average, `pruned_raw` or `pruned_ema`, whichever
    is not exported.
  """
  settings = run.settings
  weights = settings.export.weights
  steps = run.trained_steps('pretrain')
  found = {'dense': (run.load('pretrain'), steps)}
  if settings.has_baseline and finished_step(run.workdir, 'baseline') is None:
    run.reporter.warn(
      'evaluate: without a baseline, dense has trained fewer steps than pruned; '
      'run the stage `baseline` before for one'
    )
  elif settings.has_baseline:
    more = run.trained_steps('baseline')
    found['baseline'] = run.load('baseline', weights), steps + more
  dilutes = settings.method == 'dilute'
  more = 0
  if dilutes:
    more = run.trained_steps('dilute')
  elif settings.method == 'linearize':
    more = settings.linearize.polish_steps
  total = steps + more
  found['pruned'] = pruned_model(run), total
  if dilutes and settings.dilute.ema:
    other: Literal['raw', 'ema'] = 'ema' if weights == 'raw' else 'raw'
    found[f'pruned_{other}'] = pruned_model(run, other), total
  return found


def load_linear(run: Run) -> Model:
  """Loads the result of the stage `linearize`.

  Raises:
    CheckpointError: nothing yet.
  """
  return load_fitted(run, 'linearize')


def load_fitted(run: Run, stage: str) -> Model:
  """Loads the result of `linearize` or `compress`; see `load_linear`."""
  path = run.path(_FITTED[stage])
  if not path.exists():
    raise CheckpointError(
      f'{path.parent}: nothing fitted; run the stage `{stage}` first'
    )
  return run.with_options(load.load_export(path.parent))
