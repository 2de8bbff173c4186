"""Stage `linearize`: least-squares maps in place of attention layers.

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
  LinearFit,
  LinearizeOptions,
  fit_linear,
)
from lambda_vit_jax.training_free.mlp_refit import refit


def linearize(run: Run) -> None:
  """Fits maps, MLPs or both and writes `linear/`, in the form of an export."""
  settings = run.settings.linearize
  dense = run.load('pretrain')
  searched = task.searched(dense)
  layers: Sequence[int] = select.removed_layers(run, dense.depth)
  batches: Iterable[Mapping[str, Array]] = held_out.selection_batches(
    run, dense, settings.num_images
  )
  dropped: tuple[int, ...] = ()
  if settings.num_drop_blocks or settings.drop_blocks:
    # Read more than once.
    batches = list(batches)
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
  if run.leader:
    keys = ('sequential', 'rank', 'target', 'recentre', 'refit', 'maps')
    record: dict[str, Any] = {
      **{key: getattr(settings, key) for key in keys},
      'dropped': list(dropped),
      'blocks': [dataclasses.asdict(row) for row in fitted.blocks],
      'mlps': [dataclasses.asdict(row) for row in fitted.mlps],
    }
    export.export(
      with_outputs_of(drop_blocks(dense, dropped), fitted.model),
      run.path(stage_table.LINEAR).parent,
      formats=(),
      extra={'linearize': record},
    )


def _dropped(
  run: Run,
  dense: Model,
  layers: Sequence[int],
  batches: Sequence[Mapping[str, Array]],
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
  )
  return dense.replace(module=module, params=dense.params | fitted.params)
