"""Stage `analyze`: entropy of every layer, and the spectrum of features."""

from lambda_vit_jax.analysis import profile, spectrum
from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.stages.held_out import selection_batches
from lambda_vit_jax.cli.workdir import Run


def analyze(run: Run) -> None:
  """Measures entropy profile and spectrum of the dense model."""
  model = task.searched(run.load('pretrain'))
  limit = run.settings.analyze.num_images
  # Both measurements read them.
  batches = list(selection_batches(run, model, limit))
  run.reporter.say(f'analyze: {len(run.holdout_indices(limit))} images')
  arguments = (model, batches, run.memory_gib, run.mesh)
  measured = {
    'profile': profile.entropy_profile(*arguments).to_json(),
    'spectrum': spectrum.spectrum(*arguments).to_json(),
  }
  run.write_json(stage_table.ANALYSIS, measured)
