r"""Accuracy of attention layers replaced without training.

A trained dense model, 512 unlabeled images, 3 and 5 attention layers chosen by
every criterion. Affine maps with every kind of input, fitted in sequence and all
at once, against leaving the attention out (`skip`) and against the identity;
`recentred` corrects the later norms, `refit` the MLPs (with maps fitted in
sequence). Accuracy and loss over all test images.

  python benchmarks/training_free.py
  python benchmarks/training_free.py --name=fashion_mnist \
    --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

A workdir needs a finished `pretrain`; by default, digits are used with the model
that ships with the package. Finished rows are kept, so the script resumes where
it was stopped. Writes docs/benchmarks/training_free.json, one entry per name.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import common

from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.training_free.linear_maps import (
  LinearizeOptions,
  fit_linear,
)
from lambda_vit_jax.training_free.mlp_refit import refit
from lambda_vit_jax.training_free.norm_recentring import recentre

OUTPUT = common.RESULTS / 'training_free.json'
IMAGES = 512
COUNTS = (3, 5)
# One row each: the options of `nose.select`.
CRITERIA: dict[str, dict[str, Any]] = {
  'transfer_entropy': {'criterion': 'transfer_entropy'},
  'transfer_entropy, linear trial': {
    'criterion': 'transfer_entropy',
    'trial': 'linear',
  },
  'affine': {'criterion': 'affine'},
  'cosine': {'criterion': 'cosine'},
  'loss_increase': {'criterion': 'loss_increase'},
  'random': {'criterion': 'random'},
  'first': {'criterion': 'first'},
  'last': {'criterion': 'last'},
}
INPUTS = {
  'token': ('token',),
  'token+mean': ('token', 'mean'),
  'token+class': ('token', 'class_map'),
  'token+mean+class': ('token', 'mean', 'class_map'),
}
# The option of `linearize`, and the function for models without maps.
CORRECTIONS = {
  'recentred': ('recentre', recentre),
  'refit': ('refit', refit),
}
RIDGES = (1e-6, 1e-4, 1e-2, 1.0)


class Table:
  """Rows by key; computed when first asked for."""

  def __init__(self, name: str, run: Run):
    self._name = name
    self._run = run
    self.dense = run.load('pretrain')
    preprocessing = self.dense.preprocessing
    self.images = list(run.holdout_batches(preprocessing, IMAGES))
    self._test = list(run.eval_batches(preprocessing))
    self._all = common.read(OUTPUT)
    self._rows = self._all.setdefault(name, {}).setdefault('rows', {})

  def score(self, model: Model) -> dict[str, float]:
    found = accuracy.evaluate_model(model, iter(self._test), self._run.mesh)
    return {'top1': found['top1'], 'loss': found['loss']}

  def row(self, key: str, compute: Callable[[], Any]) -> dict[str, Any]:
    if key not in self._rows:
      self._rows[key] = compute()
      self._save()
      print(key, self._rows[key], flush=True)
    return self._rows[key]

  def _save(self) -> None:
    self._all[self._name] |= {
      **common.provenance(),
      'variant': self.dense.variant,
      'images': IMAGES,
    }
    common.write(OUTPUT, self._all)

  def left_out(
    self, layers: tuple[int, ...], correct: Callable[..., Model]
  ) -> dict[str, float]:
    """Scores the network without attention, after a correction."""
    model = prune(self.dense, layers, 'absent')
    return self.score(correct(model, self.dense, self.images))

  def linear(self, layers: tuple[int, ...], **options: Any) -> dict[str, Any]:
    found = fit_linear(
      self.dense, self.images, layers, LinearizeOptions(**options)
    )
    return self.score(found.model) | {
      'residual': [round(fit.residual, 4) for fit in found.blocks],
      'ridge': [fit.ridge for fit in found.blocks],
    }


def choose(table: Table, criterion: str) -> tuple[int, ...]:
  found = table.row(
    f'order {criterion}',
    lambda: {
      'order': list(
        nose(
          table.dense,
          table.images,
          num_layers=max(COUNTS),
          resamples=0,
          **CRITERIA[criterion],
        ).order
      )
    },
  )
  return tuple(found['order'])


def write_rows(
  table: Table, kinds: Sequence[str], criteria: Sequence[str]
) -> None:
  """Writes all rows of one data set, the most informative first."""
  dense = table.dense
  table.row('dense', lambda: table.score(dense))
  orders = {criterion: choose(table, criterion) for criterion in criteria}
  for criterion, order in orders.items():
    for count in COUNTS:
      layers = order[:count]
      key = f'{criterion} {count}'
      for name, mode in (('skip', 'absent'), ('identity', 'identity')):
        table.row(
          f'{key} {name}',
          lambda layers=layers, mode=mode: table.score(
            prune(dense, layers, mode)
          ),
        )
      for sequential in (True, False):
        for kind in kinds:
          how = 'sequential' if sequential else 'at once'
          table.row(
            f'{key} linear {kind} {how}',
            lambda layers=layers, kind=kind, sequential=sequential: (
              table.linear(layers, inputs=INPUTS[kind], sequential=sequential)
            ),
          )
      for how, (option, correct) in CORRECTIONS.items():
        table.row(
          f'{key} skip {how}',
          lambda layers=layers, correct=correct: table.left_out(
            layers, correct
          ),
        )
        for kind in kinds:
          table.row(
            f'{key} linear {kind} {how}',
            lambda layers=layers, kind=kind, option=option: table.linear(
              layers, inputs=INPUTS[kind], **{option: True}
            ),
          )
  if 'affine' not in orders:
    return
  layers = orders['affine'][: max(COUNTS)]
  for ridge in RIDGES:
    table.row(
      f'affine {len(layers)} linear token sequential ridge {ridge:g}',
      lambda ridge=ridge: table.linear(layers, ridge=ridge),
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--name', default='digits')
  parser.add_argument('--config', default='configs/digits.py')
  parser.add_argument('--workdir', default='runs/training_free')
  parser.add_argument('--kinds', nargs='+', choices=INPUTS, default=INPUTS)
  parser.add_argument(
    '--criteria', nargs='+', choices=CRITERIA, default=CRITERIA
  )
  options, overrides = parser.parse_known_args()
  if options.name == 'digits' and not overrides:
    overrides = [f'--config.data.holdout_images={IMAGES}']
  run = common.open_run(options.config, options.workdir, *overrides)
  registry.run_stage(run, 'pretrain')
  write_rows(Table(options.name, run), options.kinds, options.criteria)


if __name__ == '__main__':
  main()
