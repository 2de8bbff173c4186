"""The README's table for digits: accuracy after removing 5 and 6 of 12 layers.

Four rows, five seeds (all reported), all from the dense model that ships with
the package: that model as it is; the same trained for further steps (`dense`);
and NOSE + dilution with 5 and with 6 attention layers removed. The three
trained rows have the same steps, schedule, batches and augmentation.

  python benchmarks/digits_table.py --workdir=runs/digits_table

Every run has its own workdir, so the script resumes where it was stopped. Takes
about 40 minutes on one CPU core. Writes docs/benchmarks/digits_table.json.
"""

import argparse
import json
import math

import common
import numpy as np

from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.core import files
from lambda_vit_jax.core.schema import Object
from lambda_vit_jax.evaluation import accuracy

# Two-sided 95% quantile of Student's t with 4 degrees of freedom.
T_95_OF_5_SEEDS = 2.776
SEEDS = range(5)
ARMS = {'dense': 0, 'pruned-5': 5, 'pruned-6': 6}
OUTPUT = common.RESULTS / 'digits_table.json'


def run_arm(workdir: str, seed: int, layers: int) -> dict[str, float]:
  """Trains one row with one seed; returns its accuracy and the start's."""
  run = common.open_run(
    'configs/digits.py',
    workdir,
    f'--config.seed={seed}',
    f'--config.select.num_layers={layers}',
  )
  score = run.path('score.json')
  if score.exists():
    return files.read_json(score, Object())
  registry.run_stage(run, 'pretrain')
  if layers:
    registry.run_stage(run, 'select')
  else:
    files.write_json(run.path('selection.json'), {'removed': []})
  registry.run_stage(run, 'dilute')
  start, end = (
    accuracy.evaluate_model(
      model, run.eval_batches(model.preprocessing), run.mesh
    )
    for model in (run.load('pretrain'), run.load('dilute'))
  )
  removed = files.read_json(run.path('selection.json'), Object())['removed']
  result = {
    'start': start['top1'],
    'top1': end['top1'],
    'loss': end['loss'],
    'num_images': end['num_images'],
    'removed': removed,
  }
  files.write_json(score, result)
  return result


def interval(values: np.ndarray) -> dict[str, float]:
  """Mean over seeds and half the width of its 95% interval (Student's t)."""
  spread = values.std(ddof=1) / math.sqrt(len(values))
  return {'mean': float(values.mean()), 'half': float(T_95_OF_5_SEEDS * spread)}


def write_table() -> None:
  """Runs everything that is missing, then writes the JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', default='runs/digits_table')
  workdir = parser.parse_args().workdir
  rows = {
    arm: [run_arm(f'{workdir}/{arm}-{seed}', seed, layers) for seed in SEEDS]
    for arm, layers in ARMS.items()
  }
  top1 = {arm: np.array([r['top1'] for r in rows[arm]]) for arm in ARMS}
  result = {
    **common.provenance(),
    'config': 'configs/digits.py',
    'num_images': rows['dense'][0]['num_images'],
    'start': rows['dense'][0]['start'],
    'rows': {
      arm: {
        'removed': rows[arm][0]['removed'],
        'top1': interval(top1[arm]),
        'by_seed': top1[arm].tolist(),
        'loss': interval(np.array([r['loss'] for r in rows[arm]])),
        'minus_dense': interval(top1[arm] - top1['dense']),
      }
      for arm in ARMS
    },
  }
  common.write(OUTPUT, result)
  print(json.dumps(result, indent=2))


if __name__ == '__main__':
  write_table()
