"""Load the pruned model of a finished run."""

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.model import Model


def pruned_model(run: Run) -> Model:
  """Loads the model that is exported, evaluated and timed.

  Raises:
    CheckpointError: the stage that makes it has not run.
    ModelError: `model.merge` is more than the tokens allow.
  """
  if run.settings.method == 'dilute':
    model, dropped = run.load('dilute'), []
  else:
    model = load_linear(run)
    fields = run.read_json(stage_table.LINEAR) or {}
    dropped = fields.get('linearize', {}).get('dropped', [])
  # The config counts blocks as the dense network does.
  modes = list(model.attention_modes)
  for index in dropped:
    modes.insert(index, 'absent')
  merge = run.merge_schedule(model.module.clone(depth=len(modes)), modes)
  merge = tuple(r for index, r in enumerate(merge) if index not in dropped)
  merge = merge if any(merge) else ()
  return model.replace(module=model.module.clone(merge=merge))


def load_linear(run: Run) -> Model:
  """Loads the result of the stage `linearize`.

  Raises:
    CheckpointError: nothing yet.
  """
  folder = run.path(stage_table.LINEAR).parent
  if not run.path(stage_table.LINEAR).exists():
    raise CheckpointError(
      f'{folder}: nothing fitted; run the stage `linearize` first'
    )
  return run.with_options(load.load_export(folder))
