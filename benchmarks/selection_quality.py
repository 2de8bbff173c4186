r"""Quality of each criterion's choice, on trained networks of 12 blocks.

For every criterion and 3, 5 and 6 of 12 layers: accuracy and loss directly
after removal (`skip`: the branch is left out; `linear`: the best affine map
instead) and after a short dilution with the same steps, batches and schedule for
every set. Three networks, trained from scratch with seeds 0, 1 and 2; five
random draws each. Sets that several criteria choose are run once, and one
compilation serves all sets (`lambda_vit_jax.selection.short_dilution`).

  python benchmarks/selection_quality.py --name=digits \
    --config=configs/digits.py:scratch --workdir=runs/quality_digits \
    --steps=100 -- --config.pretrain.steps=1000

Every set's result is kept in its workdir, so the script resumes where it was
stopped. Writes its entry of docs/benchmarks/selection_quality.json.
"""

import argparse
import itertools
import json
import pathlib

import common
import numpy as np

from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core import files
from lambda_vit_jax.core.schema import Object
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.selection.short_dilution import ShortDilution
from lambda_vit_jax.selection.trials import Trial
from lambda_vit_jax.training_free import linear_maps

ROOT = pathlib.Path(__file__).parents[1]
OUTPUT = common.RESULTS / 'selection_quality.json'
SEEDS = range(3)
SIZES = (3, 5, 6)
# One row each: the options of `nose.select`.
CRITERIA = {
  'transfer_entropy': {},
  'transfer_entropy, absolute': {'sign': 'absolute'},
  'transfer_entropy of features': {'target': 'features'},
  'loss_increase': {},
  'cosine': {},
  'affine': {},
  'first': {},
  'last': {},
  **{f'random {draw}': {} for draw in range(5)},
}
RANDOM = 'random (5 draws)'
# The least transfer entropy among all sets of a size.
EXHAUSTIVE = 'exhaustive'


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--name', required=True)
  parser.add_argument('--config', required=True)
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('overrides', nargs='*')
  return parser.parse_args()


def open_run(options: argparse.Namespace, seed: int) -> Run:
  """The workdir of one trained network."""
  workdir = f'{options.workdir}/seed-{seed}'
  run = common.open_run(
    options.config, workdir, f'--config.seed={seed}', *options.overrides
  )
  registry.run_stage(run, 'pretrain')
  return run


Choices = dict[str, dict[int, Trial]]
"""Per criterion, the set that it removes, by size."""


def choices(run: Run, model: Model) -> Choices:
  """The sets that each criterion removes; nested for all but `exhaustive`."""
  path = run.path('choices.json')
  found = files.read_json(path, Object()) if path.exists() else {}
  batches = list(run.holdout_batches(model.preprocessing))
  for name, options in CRITERIA.items():
    if name not in found:
      kind = name.split(',')[0].split(' ')[0]
      chosen = nose(
        model,
        batches,
        criterion=kind,
        num_layers=max(SIZES),
        # Different draws for every network.
        seed=run.config['seed'] * 100 + int(name[-1])
        if kind == 'random'
        else 0,
        resamples=0,
        **options,
      )
      found[name] = list(chosen.order)
      files.write_json(path, found)
  chosen = {
    name: {size: tuple(sorted(found[name][:size])) for size in SIZES}
    for name in CRITERIA
  }
  for size in SIZES:
    key = f'{EXHAUSTIVE} {size}'
    if key not in found:
      found[key] = list(
        nose(model, batches, criterion=EXHAUSTIVE, num_layers=size).removed
      )
      files.write_json(path, found)
    chosen.setdefault(EXHAUSTIVE, {})[size] = tuple(found[key])
  return chosen


def score_sets(
  run: Run, model: Model, sets: list[Trial], steps: int
) -> dict[Trial, dict[str, float]]:
  """Accuracy and loss of every set, in the three forms."""
  path = run.path(f'sets-{steps}.json')
  done = files.read_json(path, Object()) if path.exists() else {}
  settings = run.config['dilute']
  train = list(
    itertools.islice(run.train_batches(model.preprocessing, 0), steps)
  )
  test = list(run.eval_batches(model.preprocessing))
  unlabelled = [
    {name: batch[name] for name in ('image', 'mask')}
    for batch in run.holdout_batches(model.preprocessing)
  ]
  probe = ShortDilution(model, settings, lambda: itertools.cycle(train), test)
  # Scores without training.
  plain = ShortDilution(
    model, settings | {'compensation': False}, lambda: iter(()), test
  )
  with run.reporter.bar(f'seed {run.config["seed"]}', len(sets)) as bar:
    for index, layers in enumerate(sets):
      key = ','.join(map(str, layers))
      if key not in done:
        fitted = linear_maps.linearize(model, unlabelled, layers)
        forms = {
          'skip': plain.score(layers),
          'linear': accuracy.evaluate_model(fitted, test, run.mesh),
          'diluted': probe.score(layers, probe.train(layers, steps)),
        }
        done[key] = {
          f'{form} {value}': result[value]
          for form, result in forms.items()
          for value in ('top1', 'loss')
        }
        files.write_json(path, done)
      bar.update(index + 1)
  return {layers: done[','.join(map(str, layers))] for layers in sets}


def summarize(values: list[float]) -> dict[str, float]:
  """Mean and standard deviation over networks."""
  return {
    'mean': float(np.mean(values)),
    'deviation': float(np.std(values, ddof=1)),
  }


def rows_of(
  chosen: list[Choices],
  results: list[dict[Trial, dict[str, float]]],
) -> list[dict]:
  """One row per number of layers and criterion; random draws are averaged."""
  names = [name for name in chosen[0] if not name.startswith('random')]
  rows = []
  for size in SIZES:
    for name in [*names, RANDOM]:
      draws = [
        [
          found[sets[size]]
          for label, sets in of_seed.items()
          if label == name or (name == RANDOM and label.startswith('random'))
        ]
        for of_seed, found in zip(chosen, results, strict=True)
      ]
      rows.append(
        {
          'num_layers': size,
          'criterion': name,
          'removed': None
          if name == RANDOM
          else [list(of_seed[name][size]) for of_seed in chosen],
          **{
            key: summarize(
              [np.mean([draw[key] for draw in of_seed]) for of_seed in draws]
            )
            for key in draws[0][0]
          },
        }
      )
  return rows


def write_table() -> None:
  """Runs everything that is missing, then writes the JSON."""
  options = parse()
  dense, chosen, results = [], [], []
  for seed in SEEDS:
    run = open_run(options, seed)
    model = run.load('pretrain')
    dense.append(
      accuracy.evaluate_model(
        model, run.eval_batches(model.preprocessing), run.mesh
      )
    )
    chosen.append(choices(run, model))
    sets = sorted(
      {layers for by_size in chosen[-1].values() for layers in by_size.values()}
    )
    results.append(score_sets(run, model, sets, options.steps))
  result = {
    **common.provenance(),
    'config': options.config,
    'overrides': options.overrides,
    'dilution_steps': options.steps,
    'num_images': dense[0]['num_images'],
    'dense': {
      value: summarize([row[value] for row in dense])
      for value in ('top1', 'loss')
    },
    'sets_run': sum(len(found) for found in results),
    'rows': rows_of(chosen, results),
  }
  common.write_entry(OUTPUT, options.name, result)
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  write_table()
