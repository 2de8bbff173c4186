"""Stage `linearize`: least-squares maps in place of attention layers.

With `config.method=linearize` this makes the pruned model instead of `dilute`;
see docs/method.md. It can also drop whole blocks, refit MLPs and polish the
result.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from lambda_vit_jax.analysis.images import gathered, read_images
from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.stages import held_out, select
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters import export
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.edits import drop_blocks
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import check_layers
from lambda_vit_jax.training import loop
from lambda_vit_jax.training_free import block_spans, paired, polish
from lambda_vit_jax.training_free.linear_maps import (
  LinearFit,
  LinearizeOptions,
  fit_linear,
)
from lambda_vit_jax.training_free.mlp_refit import refit

# Keys that `linear/model.json` repeats.
_RECORDED = (
  'mirrored',
  'sequential',
  'rank',
  'target',
  'recentre',
  'refit',
  'polish_steps',
  'polish_learning_rate',
  'polish_crop_area',
  'maps',
)


def linearize(run: Run) -> None:
  """Fits maps, MLPs or both and writes `linear/`, in the form of an export."""
  settings = run.settings.linearize
  dense = run.load('pretrain')
  searched = task.searched(dense)
  layers: Sequence[int] = select.removed_layers(run, dense.depth)
  if settings.polish_steps:
    # Before anything is fitted.
    number = len(run.holdout_indices(settings.num_images))
    paired.check_number((1 + settings.mirrored) * number, 'polish on')
  batches: Iterable[Mapping[str, Array]] = held_out.selection_batches(
    run, dense, settings.num_images
  )
  if settings.mirrored:
    batches = held_out.with_mirrored(batches)
  if settings.reads_twice:
    batches = list(batches)
  dropped: tuple[int, ...] = ()
  if settings.drops:
    dropped = _dropped(run, dense, layers, batches)
  short, layers = _without(run, searched, dropped, layers, batches)
  options = LinearizeOptions(
    sequential=settings.sequential,
    ridge=settings.ridge,
    rank=settings.rank,
    inputs=settings.inputs,
    target=settings.target,
    recentre=settings.recentre,
    refit=settings.refit,
    maps=settings.maps,
  )
  with run.reporter.bar('linearize', short.depth) as bar:
    fitted = fit_linear(
      short,
      batches,
      layers,
      options,
      dense=searched,
      memory_gib=run.memory_gib,
      mesh=run.mesh,
      on_progress=lambda done, total: bar.update(done, f'of {total} blocks'),
    )
  _report_fits(run, fitted)
  model = fitted.model
  if settings.polish_steps:
    model = _polished(run, model, searched, batches)
  if run.leader:
    record: dict[str, Any] = {
      **{key: getattr(settings, key) for key in _RECORDED},
      'dropped': list(dropped),
      'blocks': [dataclasses.asdict(row) for row in fitted.blocks],
      'mlps': [dataclasses.asdict(row) for row in fitted.mlps],
    }
    export.export(
      with_outputs_of(drop_blocks(dense, dropped), model),
      run.path(stage_table.LINEAR).parent,
      formats=(),
      extra={'linearize': record},
    )
    run.path(stage_table.POLISHED).rmtree(missing_ok=True)


def _dropped(
  run: Run,
  dense: Model,
  layers: Sequence[int],
  batches: Iterable[Mapping[str, Array]],
) -> tuple[int, ...]:
  """Returns the whole blocks to leave out, given or chosen by their number."""
  settings = run.settings.linearize
  if not settings.num_drop_blocks:
    return check_layers(settings.drop_blocks, dense.depth)
  decoder = dense.module.segmentation
  return block_spans.choose_blocks(
    task.searched(dense),
    batches,
    settings.num_drop_blocks,
    needed=() if decoder is None else decoder.blocks,
    removed=layers,
    memory_gib=run.memory_gib,
    mesh=run.mesh,
  )


def _without(
  run: Run,
  dense: Model,
  dropped: Sequence[int],
  layers: Sequence[int],
  batches: Iterable[Mapping[str, Array]],
) -> tuple[Model, Sequence[int]]:
  """Returns the model without whole blocks, and the new indices of `layers`."""
  if not dropped:
    return dense, layers
  kept = [index for index in range(dense.depth) if index not in dropped]
  layers = [kept.index(layer) for layer in layers if layer in kept]
  run.reporter.say(
    f'linearize: whole blocks {list(dropped)} dropped; those that stay, '
    f'{kept}, are called 0 to {len(kept) - 1} from here on'
  )
  short = drop_blocks(dense, dropped)
  # Before anything is fitted.
  check_layers((*layers, *short.removed_layers), short.depth)
  settings = run.settings.linearize
  if settings.refit and settings.maps and layers:
    # Maps are fitted to the outputs of attention, so refit the MLPs first.
    short = refit(
      short, dense, batches, memory_gib=run.memory_gib, mesh=run.mesh
    )
  return short, layers


def _polished(
  run: Run, model: Model, dense: Model, batches: Iterable[Mapping[str, Array]]
) -> Model:
  """Returns the fitted network after `polish_steps`; resumes within them.

  The closed forms before them are computed again: they are the same bits.
  """
  settings = run.settings
  how = settings.linearize
  options = polish.PolishOptions(
    how.polish_steps,
    how.polish_learning_rate,
    -(-polish.BATCH_SIZE // run.mesh.size) * run.mesh.size,
    how.polish_crop_area,
    settings.seed,
  )
  pixels = gathered(read_images(batches, model, run.mesh))
  job = polish.polish_job(model, dense, pixels, options, run.mesh)
  job = dataclasses.replace(
    job,
    description=describe(model),
    log_every=settings.log_every,
    checkpoint_every=settings.checkpoint_every,
  )
  checkpointer = orbax_store.Checkpointer(
    run.path(stage_table.POLISHED), keep=1
  )
  params = loop.fit(
    job, lambda: model.params, checkpointer, run.mesh, run.metrics, run.reporter
  )
  checkpointer.close()
  return model.replace(params=jax.device_get(params))


def _report_fits(run: Run, fitted: LinearFit) -> None:
  """Reports how well each block was replaced."""
  for row in fitted.blocks:
    run.reporter.say(
      f'linearize: block {row.block_index}: the map of '
      f'{", ".join(row.inputs)} makes up for {1 - row.residual:.1%} of what the '
      f'stream lacks (ridge {row.ridge:g})'
    )
  for mlp in fitted.mlps:
    run.reporter.say(
      f'refit: block {mlp.block_index}: its MLP makes up for '
      f'{1 - mlp.residual:.1%} of what the stream lacks (ridge {mlp.ridge:g})'
    )


def with_outputs_of(dense: Model, fitted: Model) -> Model:
  """Returns the fitted network with the decoder that the fit left out."""
  module = dense.module.clone(
    attention_modes=fitted.module.attention_modes,
    linear_inputs=fitted.module.linear_inputs,
    mlp_dims=fitted.module.mlp_dims,
    merge=fitted.module.merge,
  )
  # Of a block that has nothing left, nothing may stay.
  others = pieces.stem_params(dense.params, dense.depth)
  return dense.replace(module=module, params=others | fitted.params)
