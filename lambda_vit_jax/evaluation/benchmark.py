"""Sizes and speed of programs, measured in turn in one run.

What the stage `benchmark` measures with; `benchmark_table` shows it.

Each round calls every program once, A B C A B C …, so that a machine that
slows down does so for all; ratios are of medians of the same run. A call is
timed until its result is ready, and the first calls are thrown away.
"""

import dataclasses
import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax import __version__
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.attention import resolve_attention_kernel
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.quantization import Matrix, product
from lambda_vit_jax.runtime import compilation, startup
from lambda_vit_jax.runtime.progress import Bar, Reporter

_WARM_UP = 2
_MATMUL_SIDE = 2048

OF_MODEL = ('parameters', 'macs', 'macs_executed', 'weight_bytes')
"""Fields that do not depend on the batch size."""


_OF_BATCH = (
  'peak_bytes',
  'temp_bytes',
  'compile_seconds',
  'images_per_second',
  'flops_per_second',
  'fraction_of_matmul',
)


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that holds its weights, and what is known of it from elsewhere.

  Attributes:
    run: images to logits.
    sizes: `OF_MODEL`, and whatever else its row is to have.
  """

  run: Callable[[Array], Array]
  sizes: Mapping[str, Any]


def time_in_turn(
  calls: Mapping[str, Callable[[], Any]],
  rounds: int,
  advance: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
  """Seconds of every call in every round; warm-up rounds are not counted."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for round_index in range(_WARM_UP + rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      if round_index >= _WARM_UP:
        seconds[name].append(time.perf_counter() - start)
    advance(1)
  return seconds


def _rates(seconds: list[float], batch_size: int) -> dict[str, float]:
  rates = batch_size / np.asarray(seconds)
  return {
    'min': float(rates.min()),
    'median': float(np.median(rates)),
    'max': float(rates.max()),
  }


def compile_model(
  model: Model, images: Array
) -> tuple[Callable[[], Array], dict[str, Any]]:
  """Compiles the forward pass ahead of time.

  Returns:
    A call without arguments, and what the compiler knows: `parameters`,
    `macs`, `macs_executed` (METHOD, section 1), `weight_bytes`, `peak_bytes`
    (arguments, results and temporaries together), `temp_bytes` and
    `compile_seconds`.
  """
  module = model.module

  def predict(params: Any, batch: Array) -> Array:
    return apply_module(module, params, batch, capture=False)[0]

  call, planned = _compile(compilation.Program(predict), model.params, images)
  sizes = {
    'parameters': model.num_parameters,
    'macs': model.macs(),
    'macs_executed': model.macs(executed=True),
    'weight_bytes': int(
      sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    ),
  }
  return call, sizes | planned


def compile_program(
  program: Program, images: Array
) -> tuple[Callable[[], Array], dict[str, Any]]:
  """The same for a program with weights of its own.

  It is compiled as another program would, without our compiler options. There
  is no `peak_bytes`: the compiler does not count those weights.
  """
  call, planned = _compile(jax.jit(program.run), images)
  del planned['peak_bytes']
  return call, dict(program.sizes) | planned


def _compile(
  function: Any, *arguments: Any
) -> tuple[Callable[[], Array], dict[str, Any]]:
  start = time.perf_counter()
  with startup.without_cache():
    compiled = function.lower(*arguments).compile()
  seconds = time.perf_counter() - start
  # None where a backend cannot tell; its figures are then 0.
  memory: Any = compiled.memory_analysis()
  planned = {
    'peak_bytes': int(
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
    ),
    'temp_bytes': int(memory.temp_size_in_bytes),
    'compile_seconds': seconds,
  }
  return lambda: compiled(*arguments), planned


def compare(
  models: Mapping[str, Model],
  programs: Mapping[str, Program],
  *,
  batch_size: int,
  rounds: int,
  reporter: Reporter,
  batch_sizes: Sequence[int] = (),
) -> dict[str, Any]:
  """Measures models and programs in turn on one device.

  Args:
    models: `dense` and `pruned`.
    programs: `exported`.
    batch_size: images per call.
    rounds: counted calls of each.
    reporter: shows progress.
    batch_sizes: measured as well, each by itself in the same way.

  Returns:
    The contents of `benchmark.json` (METHOD, section 7); `fraction_of_matmul`
    relates the executed operations to a matrix product of the same run.
    `sweep` has an entry for each of `batch_sizes`, with the fields that
    depend on it.
  """
  sizes = dict.fromkeys((batch_size, *batch_sizes))
  found: dict[int, dict[str, Any]] = {}
  with reporter.bar('benchmark', (_WARM_UP + rounds) * len(sizes)) as bar:
    for size in sizes:
      found[size] = _measure(models, programs, size, rounds, bar)
  module = next(iter(models.values())).module
  results = {
    'device': describe_device(),
    'dtype': jnp.dtype(module.dtype).name,
    'batch_size': batch_size,
    'rounds': rounds,
    'attention_kernel': resolve_attention_kernel(
      module.attention_kernel,
      module.embed_dim // module.num_heads,
      module.dtype,
    ),
    'compiler_options': compilation.compiler_options(),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'versions': versions(),
    **found[batch_size],
  }
  if batch_sizes:
    names = (*models, *programs)
    results['sweep'] = [
      {'batch_size': size}
      | {
        name: _of_batch(value) if name in names else value
        for name, value in found[size].items()
      }
      for size in dict.fromkeys(batch_sizes)
    ]
  return results


def _of_batch(row: Mapping[str, Any]) -> dict[str, Any]:
  """What of a row depends on the batch size: what was measured."""
  return {name: value for name, value in row.items() if name in _OF_BATCH}


def _measure(
  models: Mapping[str, Model],
  programs: Mapping[str, Program],
  batch_size: int,
  rounds: int,
  bar: Bar,
) -> dict[str, Any]:
  """A row for each, the matrix product beside them, and `speedup`."""
  module = next(iter(models.values())).module
  rng = np.random.default_rng(0)
  shape = (batch_size, *module.image_size, module.in_chans)
  images = jnp.asarray(rng.normal(size=shape), jnp.float32)
  calls: dict[str, Callable[[], Any]] = {}
  rows: dict[str, dict[str, Any]] = {}
  for name, model in models.items():
    calls[name], rows[name] = compile_model(model, images)
  for name, program in programs.items():
    calls[name], rows[name] = compile_program(program, images)
  square = jnp.asarray(
    rng.normal(size=(_MATMUL_SIDE, _MATMUL_SIDE)), module.dtype
  )
  # As the models take theirs: the fastest that is at hand.
  multiply = compilation.Program(lambda x, y: product(x, Matrix(y)))
  calls['matmul'] = lambda: multiply(square, square)

  seconds = time_in_turn(calls, rounds, bar.advance)
  matmul = 2 * _MATMUL_SIDE**3 / float(np.median(seconds['matmul']))
  for name, row in rows.items():
    rates = row['images_per_second'] = _rates(seconds[name], batch_size)
    row['flops_per_second'] = 2 * row['macs_executed'] * rates['median']
    row['fraction_of_matmul'] = row['flops_per_second'] / matmul
  medians = {
    name: row['images_per_second']['median'] for name, row in rows.items()
  }
  return {
    'matmul_flops_per_second': matmul,
    **rows,
    'speedup': medians['pruned'] / medians['dense'],
  }


def describe_device() -> str:
  """The accelerator's name, or the processor and its number of cores."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return f'{jax.device_count()} x {device.device_kind}'
  name = platform.processor() or platform.machine()
  try:
    with open('/proc/cpuinfo') as file:
      names = [line for line in file if line.startswith('model name')]
    name = names[0].split(':', 1)[1].strip() if names else name
    cores = f'{len(names)} x ' if names else ''
  except OSError:
    cores = ''
  return f'{cores}{name}'


def versions() -> dict[str, str]:
  """Versions of what the figures depend on."""
  packages = ('jax', 'jaxlib', 'flax', 'numpy')
  found = {name: importlib.metadata.version(name) for name in packages}
  return {
    'lambda_vit_jax': __version__,
    'python': platform.python_version(),
    **found,
  }
