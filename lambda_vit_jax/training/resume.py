"""`--config.resume_from`: training goes on from another run's checkpoint."""

from etils import epath

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.errors import CheckpointError

STAGES = ('pretrain', 'dilute')


def find(where: str, stage: str) -> orbax_store.Source | None:
  """The checkpoint that `stage` is to go on from.

  Args:
    where: a workdir, of which the newest checkpoint of the stage is taken;
      or the folder of a stage, `WORKDIR/checkpoints/STAGE`, or a checkpoint
      in it, `…/STEP`. Empty for none.
    stage: `pretrain` or `dilute`.

  Returns:
    None where there is none for this stage, but one for another.

  Raises:
    CheckpointError: there is none at all.
  """
  if not where:
    return None
  path = orbax_store.absolute(where)
  found = {name: source for name in STAGES if (source := _of(path, name))}
  if not found:
    raise CheckpointError(
      f'config.resume_from={where}: no checkpoint there; give a workdir, or '
      'WORKDIR/checkpoints/STAGE/STEP'
    )
  return found.get(stage)


def _of(path: epath.Path, stage: str) -> orbax_store.Source | None:
  """What `path` holds of a stage."""
  directory = path / 'checkpoints' / stage
  # A workdir may have any name, also that of a stage or a number.
  if not directory.exists():
    if path.parts[-3:-1] == ('checkpoints', stage) and path.name.isdigit():
      step = int(path.name)
      return orbax_store.Source(path.parent, step) if path.exists() else None
    if path.parts[-2:] == ('checkpoints', stage):
      directory = path
  newest = orbax_store.newest_step(directory)
  return None if newest is None else orbax_store.Source(directory, newest)
