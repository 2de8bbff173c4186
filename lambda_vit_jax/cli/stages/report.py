"""Stage `report`: write `report.html`, a page with the results of a run."""

from lambda_vit_jax.cli.report import build
from lambda_vit_jax.cli.workdir import Run


def write_report(run: Run) -> None:
  """Writes the page from what is in the workdir."""
  if run.leader:
    build.write_report(run.workdir)
