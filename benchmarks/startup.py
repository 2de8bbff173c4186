"""Start-up time of `lambda-vit`, and time saved by its compilation cache.

  python benchmarks/startup.py

Every figure is from fresh processes: wall time, and CPU time (user and system),
which excludes other programs. The model of the second part is a DeiT-S with
random weights. Writes docs/benchmarks/startup.json; exits 1 if a bound is
missed.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import common

OUTPUT = common.RESULTS / 'startup.json'
BOUNDS = {'help': 1.5, 'models': 2.5, 'predict': 6.0}
"""Greatest median wall time in seconds."""

LEAST_RATIO = 3.0
"""Least ratio of compiling and calling once without the cache to with it."""

_EXPORT = """
import sys
import lambda_vit_jax as lv
where, variant = sys.argv[1:]
if variant == 'digits':
  model = lv.load_pretrained('builtin:vit_mini_patch2_8_digits')
  model = lv.prune(model, (6, 8, 9, 10, 11))
else:
  model = lv.create_model(variant)
lv.export(model, where, formats=())
"""

_FIRST_CALL = """
import json, sys, time
import numpy as np
import jax
import lambda_vit_jax as lv
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.runtime import startup
startup.use_cache()
model = lv.load_pretrained(sys.argv[1])
from lambda_vit_jax.models.build import apply_module

height, width = model.module.image_size
images = np.zeros((1, height, width, model.module.in_chans), np.float32)
jax.block_until_ready(model.params)
program = compilation.Program(
  lambda params, x: apply_module(model.module, params, x, capture=False)[0]
)
times = [(time.perf_counter(), time.process_time())]
lowered = program.lower(model.params, images)
times.append((time.perf_counter(), time.process_time()))
jax.block_until_ready(lowered.compile()(model.params, images))
times.append((time.perf_counter(), time.process_time()))
trace, rest = (
  dict(zip(('wall', 'processor'), (y - x for x, y in zip(a, b))))
  for a, b in zip(times, times[1:])
)
both = trace['wall'] + rest['wall']
print(json.dumps(rest | {'trace': trace['wall'], 'wall_and_trace': both}))
"""


def time_command(command: list[str], cache: str) -> dict[str, float]:
  """Seconds of one process."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  start = time.perf_counter()
  subprocess.run(
    command,
    check=True,
    stdout=subprocess.DEVNULL,
    env=os.environ | {'LAMBDA_VIT_CACHE': cache},
  )
  wall = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
  return {'wall': wall, 'processor': used}


def first_call(export: str, cache: str) -> dict[str, float]:
  """Seconds of compiling and running once, in a fresh process.

  Tracing, which the cache cannot save, is reported separately.
  """
  done = subprocess.run(
    [sys.executable, '-c', _FIRST_CALL, export],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'LAMBDA_VIT_CACHE': cache},
  )
  return json.loads(done.stdout)


def summary(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
  """Least, median and greatest of each kind of seconds."""
  return {kind: common.spread(row[kind] for row in rows) for kind in rows[0]}


def write_image(path: str) -> None:
  """A grey square."""
  from PIL import Image

  Image.new('L', (32, 32), 128).save(path)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--variant', default='deit_small_patch16_224')
  parser.add_argument('--output', type=pathlib.Path, default=OUTPUT)
  flags = parser.parse_args()
  program = [sys.executable, '-m', 'lambda_vit_jax']
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as folder:
    digits, large = f'{folder}/digits', f'{folder}/large'
    for where, variant in ((digits, 'digits'), (large, flags.variant)):
      subprocess.run(
        [sys.executable, '-c', _EXPORT, where, variant], check=True
      )
    image = f'{folder}/image.png'
    write_image(image)
    predict = [*program, 'predict', f'--model={digits}', image]
    cache = f'{folder}/cache'
    rows = {
      'help': ([*program, '--help'], 'off'),
      'models': ([*program, 'models'], 'off'),
      'predict_without_cache': (predict, 'off'),
      'predict': (predict, cache),
    }
    time_command(predict, cache)
    commands = {
      name: summary([time_command(*what) for _ in range(flags.rounds)])
      for name, what in rows.items()
    }
    first_call(large, cache)
    # In turns, so that other load slows both.
    turns = [
      {
        name: first_call(large, where)
        for name, where in (('without_cache', 'off'), ('with_cache', cache))
      }
      for _ in range(flags.rounds)
    ]
    calls = {name: summary([turn[name] for turn in turns]) for name in turns[0]}
  ratio = {
    kind: calls['without_cache'][kind]['median']
    / calls['with_cache'][kind]['median']
    for kind in ('wall', 'processor', 'wall_and_trace')
  }
  results = {
    **common.provenance(),
    'rounds': flags.rounds,
    'load_average': load,
    'seconds': commands,
    'bounds': BOUNDS,
    'first_call': {'variant': flags.variant, **calls, 'ratio': ratio},
  }
  common.write(flags.output, results)
  print(json.dumps(results, indent=2))
  held = all(
    commands[name]['wall']['median'] <= bound for name, bound in BOUNDS.items()
  )
  return 0 if held and ratio['wall'] >= LEAST_RATIO else 1


if __name__ == '__main__':
  sys.exit(main())
