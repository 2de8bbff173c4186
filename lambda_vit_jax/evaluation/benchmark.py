"""Compare the sizes and speed of compiled models.

Used by the stage `benchmark`. Programs are timed in turn until the ratio of
pruned and dense is known (`timing`).
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
from lambda_vit_jax.core import processor
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.evaluation.programs import speed
from lambda_vit_jax.evaluation.timing import Limits, measure, time_in_turn
from lambda_vit_jax.models.attention import resolve_attention_kernel
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.quantization import Matrix, product
from lambda_vit_jax.runtime import compilation, startup
from lambda_vit_jax.runtime.progress import Reporter

_MATMUL_SIDE = 2048
_MATMUL_ROUNDS = 5

OF_MODEL = ('parameters', 'macs', 'macs_executed', 'weight_bytes')
"""Fields that do not depend on the batch size."""

_OF_BATCH = (
  'peak_bytes',
  'temp_bytes',
  'compile_seconds',
  'images_per_second',
  'images_per_second_interval',
  'speedup',
  'speedup_interval',
  'flops_per_second',
  'fraction_of_matmul',
)


@dataclasses.dataclass(frozen=True)
class ExportedProgram:
  """A program with its weights inside, and its sizes as recorded elsewhere.

  Attributes:
    run: images to logits.
    sizes: `OF_MODEL`, and other fields for its row.
  """

  run: Callable[[Array], Array]
  sizes: Mapping[str, Any]


def compile_model(
  model: Model, images: Array
) -> tuple[Callable[[], Array], dict[str, Any]]:
  """Compiles the forward pass ahead of time.

  Returns:
    A call without arguments, and its sizes: `parameters`, `macs` and
    `macs_executed` (see docs/method.md#what-is-counted), `weight_bytes`,
    `peak_bytes` (arguments, results and temporaries together), `temp_bytes`
    and `compile_seconds`.
  """
  module = model.module

  def predict(params: Any, batch: Array) -> Array:
    return apply_module(module, params, batch, capture=False)[0]

  call, planned = _compile(compilation.Program(predict), model.params, images)
  sizes = {
    'parameters': model.num_parameters,
    'macs': model.macs(),
    'macs_executed': model.macs(executed=True),
    'weight_bytes': sum(x.nbytes for x in jax.tree.leaves(model.params)),
  }
  return call, sizes | planned


def compile_program(
  program: ExportedProgram, images: Array
) -> tuple[Callable[[], Array], dict[str, Any]]:
  """`compile_model` for a program with its weights inside.

  It is compiled without our compiler options, as its users would. There is no
  `peak_bytes`, because the compiler does not count those weights.
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
  # Zeros if the backend does not report memory.
  memory: Any = compiled.memory_analysis()
  temporary = int(memory.temp_size_in_bytes)
  held = int(memory.argument_size_in_bytes + memory.output_size_in_bytes)
  return lambda: compiled(*arguments), {
    'peak_bytes': held + temporary,
    'temp_bytes': temporary,
    'compile_seconds': seconds,
  }


def compare(
  models: Mapping[str, Model],
  programs: Mapping[str, ExportedProgram],
  *,
  batch_size: int,
  limits: Limits,
  reporter: Reporter,
  batch_sizes: Sequence[int] = (),
) -> dict[str, Any]:
  """Times models and programs in turn on one device.

  Args:
    models: `dense` and `pruned`.
    programs: `exported`.
    batch_size: images per call.
    limits: how long to measure each batch size.
    reporter: shows progress.
    batch_sizes: further batch sizes, each timed separately in the same way.

  Returns:
    The contents of `benchmark.json` (see docs/files.md).
    `fraction_of_matmul` is the rate of executed operations relative to a
    matrix product of the same run. `sweep` has an entry for each of
    `batch_sizes`, with the fields that depend on it.
  """
  sizes = dict.fromkeys((batch_size, *batch_sizes))
  found: dict[int, dict[str, Any]] = {}
  for size in sizes:
    found[size] = _time_batch_size(models, programs, size, limits, reporter)
  first = next(iter(models.values()))
  module = first.module
  results = conditions(batch_size) | {
    'dtype': jnp.dtype(module.dtype).name,
    'attention_kernel': resolve_attention_kernel(
      module.attention_kernel,
      module.embed_dim // module.num_heads,
      module.dtype,
    ),
    'compiler_options': compilation.options_for(first.params),
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


def conditions(batch_size: int) -> dict[str, Any]:
  """Device, day and versions, as `benchmark.json` has them."""
  return {
    'device': describe_device(),
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'versions': versions(),
    'batch_size': batch_size,
  }


def _of_batch(row: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in row.items() if name in _OF_BATCH}


def _time_batch_size(
  models: Mapping[str, Model],
  programs: Mapping[str, ExportedProgram],
  batch_size: int,
  limits: Limits,
  reporter: Reporter,
) -> dict[str, Any]:
  """A row for each program, the matrix product's rate, and `speedup`."""
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
  matmul = _matmul_rate(module.dtype)
  with reporter.bar(f'benchmark of batch {batch_size}', 100) as bar:
    seconds = measure(
      calls,
      limits,
      ('dense', 'pruned'),
      lambda share: bar.update(round(100 * share), '%'),
    )
  for name, row in rows.items():
    row |= speed(batch_size, seconds[name], seconds['dense'])
    rate = row['images_per_second']['median']
    row['flops_per_second'] = 2 * row['macs_executed'] * rate
    row['fraction_of_matmul'] = row['flops_per_second'] / matmul
  return {
    'rounds': len(seconds['dense']),
    'matmul_flops_per_second': matmul,
    **rows,
    **{name: rows['pruned'][name] for name in ('speedup', 'speedup_interval')},
  }


def _matmul_rate(dtype: Any) -> float:
  """Operations per second of a large matrix product, as the models use it."""
  rng = np.random.default_rng(0)
  square = jnp.asarray(rng.normal(size=(_MATMUL_SIDE, _MATMUL_SIDE)), dtype)
  multiply = compilation.Program(lambda x, y: product(x, Matrix(y)))
  seconds = time_in_turn(
    {'matmul': lambda: multiply(square, square)}, _MATMUL_ROUNDS
  )
  return 2 * _MATMUL_SIDE**3 / float(np.median(seconds['matmul']))


def describe_device() -> str:
  """The accelerator's name, or the processor and its number of cores."""
  device = jax.devices()[0]
  if device.platform != 'cpu':
    return f'{jax.device_count()} x {device.device_kind}'
  names = processor.names()
  if names:
    return f'{len(names)} x {names[0]}'
  return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
  """Versions of the packages that the figures depend on."""
  packages = ('jax', 'jaxlib', 'flax', 'numpy')
  own = {'lambda_vit_jax': __version__, 'python': platform.python_version()}
  return own | {name: importlib.metadata.version(name) for name in packages}
