"""Stage `report`: `report.html`, the page that shows a run."""

from lambda_vit_jax.cli.report import build
from lambda_vit_jax.cli.workdir import Run


def write_report(run: Run) -> None:
  """One self-contained page from what is in the workdir."""
  if run.leader:
    build.write_report(run.workdir)
