"""Stage `compress`: one budget over attention, MLPs and blocks, without training.

With `config.method=compress` this makes the pruned model; see docs/method.md. The
path so far is in `compression.json` after every step. An interrupted search makes
its steps again, which takes fits but no scores, and goes on.
"""

from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.stages import held_out
from lambda_vit_jax.cli.stages.linearize import with_outputs_of
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.compression import greedy
from lambda_vit_jax.compression.parts import Part
from lambda_vit_jax.compression.record import Compression
from lambda_vit_jax.exporters import export
from lambda_vit_jax.models.edits import drop_blocks


def compress(run: Run) -> None:
  """Searches, and writes `compressed/` in the form of an export."""
  settings = run.settings
  dense = run.load('pretrain')
  searched = task.searched(dense)
  batches = held_out.selection_batches(
    run, searched, settings.compress.num_images
  )
  fields = run.read_json(stage_table.COMPRESSION)
  begun = None
  if fields is not None:
    where = str(run.path(stage_table.COMPRESSION))
    begun = Compression.from_json(fields, where)
  with run.reporter.bar('compress', 100) as bar:
    shares = [0]

    def keep(found: Compression) -> None:
      run.write_json(stage_table.COMPRESSION, found.to_json())
      gained = (found.reached - 1.0) / (found.target_speedup - 1.0)
      shares.append(int(100 * gained))

    def show(part: Part) -> None:
      bar.update(shares[-1], f'% {part}')

    found = greedy.run(
      searched,
      batches,
      task.compress_options(settings, run.memory_gib),
      mesh=run.mesh,
      resume=begun,
      listener=greedy.Listener(keep, show),
      warn=run.reporter.warn,
    )
    bar.update(100)
  run.write_json(stage_table.COMPRESSION, found.to_json())
  _say(run, found)
  if run.leader:
    kept = found.model.block_origins
    dropped = [
      position
      for position, block in enumerate(dense.block_origins)
      if block not in kept
    ]
    export.export(
      with_outputs_of(drop_blocks(dense, dropped), found.model),
      run.path(stage_table.COMPRESSED).parent,
      formats=(),
      extra={'compress': {'dropped': dropped}},
    )


def _say(run: Run, found: Compression) -> None:
  """Reports the path in words."""
  for step in found.steps:
    run.reporter.say(
      f'compress: {step.part} of block {step.block}: '
      f'{found.speedup(step):.3f} times as fast, error {step.error:.4g}'
    )
