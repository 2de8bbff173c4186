"""Stage `linearize`: replace attention layers by least squares, no training.

With `config.method=linearize` this makes the pruned model instead of `dilute`;
see docs/method.md. It can also drop whole blocks and refit MLPs.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lambda_vit_jax.cli import stage_table, task
from lambda_vit_jax.cli.stages import held_out, select
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.exporters import export
from lambda_vit_jax.models.edits import drop_blocks
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import check_layers
from lambda_vit_jax.training_free import block_spans
from lambda_vit_jax.training_free.linear_maps import (
  LinearizeOptions,
  fit_linear,
)
from lambda_vit_jax.training_free.map_fitter import BlockFit
from lambda_vit_jax.training_free.mlp_refit import MlpFit, refit


def fit(
  run: Run,
  dense: Model,
  layers: Sequence[int],
  batches: Iterable[Mapping[str, Array]],
  memory_gib: float | None,
) -> None:
  """Fits maps, MLPs or both and writes `linear/`, in the form of an export.

  Args:
    run: the workdir.
    dense: with attention in `layers`.
    layers: chosen blocks; those that are dropped are ignored.
    batches: images; labels are not read.
    memory_gib: working memory per device.
  """
  settings = run.settings.linearize
  searched = task.searched(dense)
  dropped: tuple[int, ...] = ()
  if settings.num_drop_blocks or settings.drop_blocks:
    # Read more than once.
    batches = list(batches)
    dropped = _dropped(run, dense, layers, batches, memory_gib)
  short, layers = _without(run, searched, dropped, layers, batches, memory_gib)
  with run.reporter.bar('linearize', short.depth) as bar:
    fitted = fit_linear(
      short,
      batches,
      layers,
      LinearizeOptions(
        sequential=settings.sequential,
        ridge=settings.ridge,
        rank=settings.rank,
        inputs=settings.inputs,
        recentre=settings.recentre,
        refit=settings.refit,
        maps=settings.maps,
      ),
      dense=searched,
      memory_gib=memory_gib,
      mesh=run.mesh,
      on_progress=lambda done, total: bar.update(done, f'of {total} blocks'),
    )
  model = with_outputs_of(drop_blocks(dense, dropped), fitted.model)
  _report_fits(run, fitted.blocks, fitted.mlps)
  if run.leader:
    record: dict[str, Any] = {
      'sequential': settings.sequential,
      'rank': settings.rank,
      'recentre': settings.recentre,
      'refit': settings.refit,
      'maps': settings.maps,
      'dropped': list(dropped),
      'blocks': [dataclasses.asdict(row) for row in fitted.blocks],
      'mlps': [dataclasses.asdict(row) for row in fitted.mlps],
    }
    export.export(
      model,
      run.path(stage_table.LINEAR).parent,
      formats=(),
      extra={'linearize': record},
    )


def _dropped(
  run: Run,
  dense: Model,
  layers: Sequence[int],
  batches: Sequence[Mapping[str, Array]],
  memory_gib: float | None,
) -> tuple[int, ...]:
  """Returns the whole blocks to leave out, given or chosen by their number."""
  settings = run.settings.linearize
  number = settings.num_drop_blocks
  if not number:
    return check_layers(settings.drop_blocks, dense.depth)
  decoder = dense.module.segmentation
  return block_spans.choose_blocks(
    task.searched(dense),
    batches,
    number,
    needed=() if decoder is None else decoder.blocks,
    removed=layers,
    memory_gib=memory_gib,
    mesh=run.mesh,
  )


def _without(
  run: Run,
  dense: Model,
  dropped: Sequence[int],
  layers: Sequence[int],
  batches: Iterable[Mapping[str, Array]],
  memory_gib: float | None,
) -> tuple[Model, list[int]]:
  """Returns the model without whole blocks, and the new indices of `layers`."""
  if not dropped:
    return dense, list(layers)
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
    short = refit(short, dense, batches, memory_gib=memory_gib, mesh=run.mesh)
  return short, layers


def _report_fits(
  run: Run, fits: Iterable[BlockFit], mlps: Iterable[MlpFit]
) -> None:
  """Reports how well each block was replaced."""
  for row in fits:
    run.reporter.say(
      f'linearize: block {row.block_index}: {1 - row.residual:.1%} of the '
      f"attention's variance is affine (ridge {row.ridge:g})"
    )
  for mlp in mlps:
    run.reporter.say(
      f'refit: block {mlp.block_index}: its MLP makes up for '
      f'{1 - mlp.residual:.1%} of what the stream lacks (ridge {mlp.ridge:g})'
    )


def with_outputs_of(dense: Model, fitted: Model) -> Model:
  """Returns the fitted network with the decoder that the fit left out."""
  module = dense.module.clone(
    attention_modes=fitted.module.attention_modes,
    linear_inputs=fitted.module.linear_inputs,
  )
  return dense.replace(module=module, params=dense.params | fitted.params)


def linearize(run: Run) -> None:
  """Replaces the chosen attention layers by least-squares maps."""
  dense = run.load('pretrain')
  limit = run.settings.linearize.num_images
  fit(
    run,
    dense,
    select.removed_layers(run, dense.depth),
    held_out.selection_batches(run, dense, limit),
    held_out.memory_gib(run),
  )
