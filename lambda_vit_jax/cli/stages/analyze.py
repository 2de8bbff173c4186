"""Stage `analyze`: entropy of every layer, and the spectrum of features."""

from lambda_vit_jax.analysis import profile, spectrum
from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.stages.held_out import memory_gib, selection_batches
from lambda_vit_jax.cli.workdir import Run


def analyze(run: Run) -> None:
  """Measures entropy profile and spectrum of the dense model."""
  model = task.searched(run.load('pretrain'))
  limit = run.settings.analyze.num_images
  # Both measurements read them.
  batches = list(selection_batches(run, model, limit))
  run.reporter.say(f'analyze: {len(run.holdout_indices(limit))} images')
  memory = memory_gib(run)
  measured = {
    'profile': profile.entropy_profile(
      model, batches, memory, run.mesh
    ).to_json(),
    'spectrum': spectrum.spectrum(model, batches, memory, run.mesh).to_json(),
  }
  run.write_json(stage_table.ANALYSIS, measured)
