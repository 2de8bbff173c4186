"""Cost of dilution per training step, and of a step after the switch at λ = 0.

  python benchmarks/dilution_cost.py [--rounds=30] [--case=mini] [--case=deit]

Four programs take turns (A B C D A B C D ...) in one process on one core:

  dense      plain training of the dense model
  diluting   the same with 5 of 12 blocks being diluted
  switched   after λ = 0: the pruned state and the pruned program
  pruned     training of the pruned model from the start

Bounds: diluting / dense at most 1.02, switched / pruned at most 1.03. The wall
clock of a shared machine is too noisy for them, and CPU time less so: the ratio
of the least CPU times over all turns decides. The medians and extremes of the
rounds' ratios are reported too, and the floating-point operations that XLA
counts in each program, which are free of noise. Writes
docs/benchmarks/dilution_cost.json, case by case; exits 1 if a bound is missed.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import common

CASES = {
  # Variant, batch size, steps of a turn.
  'mini': ('vit_mini_patch2_8', 64, 1),
  'deit': ('deit_tiny_patch16_224', 8, 1),
}
LAYERS = (0, 1, 3, 4, 6)
BOUNDS = {'diluting_over_dense': 1.02, 'switched_over_pruned': 1.03}
OUTPUT = common.RESULTS / 'dilution_cost.json'
SETTINGS = {
  'weight_decay': 0.05,
  'b1': 0.9,
  'b2': 0.999,
  'clip_norm': 1.0,
  'layer_decay': 1.0,
  'frozen': '',
  'accumulate_steps': 1,
}


def make_programs(
  variant: str, batch_size: int
) -> dict[str, tuple[Callable, float]]:
  """Per program, a function that takes one step, and its operation count."""
  import jax
  import numpy as np

  from lambda_vit_jax.models import modes as modes_lib
  from lambda_vit_jax.models.build import init_params, make_module
  from lambda_vit_jax.runtime import sharding
  from lambda_vit_jax.training import dilution, optim
  from lambda_vit_jax.training.dilution import Dilution
  from lambda_vit_jax.training.step import (
    LossSettings,
    init_state,
    make_train_step,
    prune_state,
  )

  module = make_module(variant, drop_path_rate=0.1)
  modes = module.attention_modes
  diluted = module.clone(attention_modes=dilution.diluted_modes(LAYERS, modes))
  pruned = module.clone(attention_modes=modes_lib.modes_without(LAYERS, modes))
  schedule = optim.learning_rate_schedule(1e-4, 10_000, 10, 1e-5)
  optimizer = optim.make_optimizer(SETTINGS, schedule, module.depth)
  mesh = sharding.make_mesh(1)
  rng = np.random.default_rng(0)
  shape = (batch_size, *module.image_size, module.in_chans)
  batch = {
    'image': rng.normal(size=shape).astype(np.float32),
    'label': rng.integers(0, module.num_classes, batch_size).astype(np.int32),
  }
  batch = sharding.put_batch(batch, mesh)

  def program(network: Any, plan: Any, prune: bool) -> tuple[Callable, float]:
    # A state of its own for each: steps donate theirs.
    start = network if not prune else module
    state = init_state(init_params(start, 0), optimizer, False)
    if prune:
      state = prune_state(state, LAYERS)
    shardings = sharding.tree_shardings(state, mesh)
    state = jax.device_put(jax.tree.map(np.array, state), shardings)
    step = make_train_step(
      network,
      optimizer,
      LossSettings(label_smoothing=0.1, mixup_alpha=0.8),
      plan,
      0,
      mesh,
      shardings,
    )
    holder = [state]
    flops = step.lower(state, batch, None).cost_analysis()['flops']

    def take() -> None:
      holder[0], metrics = step(holder[0], batch, None)
      jax.block_until_ready(metrics)

    return take, flops

  return {
    'dense': program(module, Dilution(), False),
    'diluting': program(diluted, Dilution(LAYERS, 10_000), False),
    'switched': program(pruned, Dilution(LAYERS, 0), True),
    'pruned': program(pruned, Dilution(), False),
  }


def time_steps(programs: dict[str, Callable], steps: int, rounds: int) -> dict:
  """Wall-clock and CPU seconds per step in every round."""
  times: dict[str, dict[str, list[float]]] = {
    name: {'cpu': [], 'wall': []} for name in programs
  }
  for number in range(rounds + 1):
    for name, take in programs.items():
      cpu, wall = time.process_time(), time.perf_counter()
      for _ in range(steps):
        take()
      # The first round compiles.
      if number:
        times[name]['cpu'].append((time.process_time() - cpu) / steps)
        times[name]['wall'].append((time.perf_counter() - wall) / steps)
  return times


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=30)
  parser.add_argument('--case', action='append', choices=CASES)
  flags = parser.parse_args()
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

  from lambda_vit_jax.runtime import startup

  # As the stages do.
  startup.keep_memory()
  results = common.read(OUTPUT)
  missed = False
  for case in flags.case or CASES:
    variant, batch_size, steps = CASES[case]
    programs = make_programs(variant, batch_size)
    flops = {name: count for name, (_, count) in programs.items()}
    takes = {name: take for name, (take, _) in programs.items()}
    times = time_steps(takes, steps, flags.rounds)
    ratios: dict[str, dict[str, Any]] = {}
    for name in BOUNDS:
      above, below = name.split('_over_')
      ratios[name] = {
        clock: common.spread(
          [
            a / b
            for a, b in zip(
              times[above][clock], times[below][clock], strict=True
            )
          ]
        )
        for clock in ('cpu', 'wall')
      }
      ratios[name]['cpu_minima'] = min(times[above]['cpu']) / min(
        times[below]['cpu']
      )
      ratios[name]['flops'] = flops[above] / flops[below]
    results[case] = {
      **common.provenance(),
      'cores_used': 1,
      'variant': variant,
      'batch_size': batch_size,
      'rounds': flags.rounds,
      'operations_per_step': flops,
      'steps_per_round': steps,
      'seconds_per_step': {
        name: {clock: common.spread(values) for clock, values in both.items()}
        for name, both in times.items()
      },
      'ratios': ratios,
      'bounds': BOUNDS,
    }
    common.write(OUTPUT, results)
    for name, bound in BOUNDS.items():
      found = ratios[name]
      missed |= found['cpu_minima'] > bound
      print(
        f'{case}: {name} {found["cpu_minima"]:.3f} of CPU time (minima; median '
        f'{found["cpu"]["median"]:.3f}, {found["cpu"]["min"]:.3f} to '
        f'{found["cpu"]["max"]:.3f}), bound {bound}; operations '
        f'{found["flops"]:.4f}'
      )
  return int(missed)


if __name__ == '__main__':
  sys.exit(main())
