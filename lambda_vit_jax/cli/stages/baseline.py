"""Stage `baseline`: the dense model, trained as long as the pruned one.

Dilution trains further, so that the dense model it starts from has seen fewer
steps than its result. This stage trains the dense model for the same steps, with
the section `dilute` and the same images, but leaves every layer in place.
"""

from lambda_vit_jax.cli.stages.dilute import dilution_steps
from lambda_vit_jax.cli.stages.training_job import train
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Phase


def baseline(run: Run) -> None:
  """Trains the dense model for the steps of `dilute`."""
  dense = run.load('pretrain')
  diluting, settling = dilution_steps(run)
  phases = (Phase(dense.module, until=diluting + settling),)
  # Without layers λ stays 1; an average begins where that of `dilute` does.
  train(run, 'baseline', dense, phases, Dilution(steps=diluting), dense)
