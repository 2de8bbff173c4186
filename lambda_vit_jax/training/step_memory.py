"""What a training step needs in memory, before the first one runs.

`estimate` needs the sizes of the network alone, so that what cannot fit is
refused at once; `report` says what the compiler has planned.
"""

import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.models.build import abstract_params
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime.progress import Reporter

GIB = 2**30

# Float32 copies of the parameters: themselves, their gradients, two moments.
_COPIES = 4


def report(
  stage: str, images: int, step: Any, arguments: Sequence[Any], to: Reporter
) -> None:
  """Compiles a step and reports what it needs; the call then compiles nothing.

  Args:
    stage: its name.
    images: of a step, over all devices.
    step: a `compilation.Program`.
    arguments: of the step; they are in memory already.
    to: shows the line, and a warning if it is more than there is.
  """
  compiled = step.lower(*arguments).compile()
  found = compiled.memory_analysis()
  if found is None:
    return
  more = found.temp_size_in_bytes + found.output_size_in_bytes
  more -= found.alias_size_in_bytes
  needed = found.argument_size_in_bytes + more
  free, where = free_bytes()
  # Devices of a CPU share its memory.
  devices = jax.local_device_count() if where == 'here' else 1
  to.say(
    f'{stage}: a step of {images} images needs '
    f'{devices * needed / GIB:.2f} GiB {where}'
  )
  if free is not None and devices * more > free:
    to.warn(
      f'{stage}: of the {devices * needed / GIB:.1f} GiB that a step needs '
      f'{where}, {devices * more / GIB:.1f} are still to be had and '
      f'{free / GIB:.1f} are free; lower batch_size, or set model.remat=True'
    )


def free_bytes() -> tuple[int | None, str]:
  """Free memory, if known, and where: `on each device`, or `here` for a CPU."""
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    stats = device.memory_stats() or {}
    limit = stats.get('bytes_limit')
    used = stats.get('bytes_in_use', 0)
    return None if limit is None else limit - used, 'on each device'
  try:
    text = pathlib.Path('/proc/meminfo').read_text()
  except OSError:
    return None, 'here'
  available = re.search(r'MemAvailable:\s+(\d+) kB', text)
  return int(available[1]) * 1024 if available else None, 'here'


def estimate(
  module: ViT, images: int, fsdp: int = 1, with_ema: bool = False
) -> int:
  """Estimates from below what a training step takes of one device.

  Counted are parameters, gradients, moments and average, and what the backward
  pass reads again: per block eight streams (`[tokens, embed]`), the hidden layer
  of the MLP before and after its activation, and float32 attention scores; with
  rematerialisation one stream per block, and all of one block. On a CPU the
  compiler planned 1.0 to 1.5 times as much.

  Args:
    module: the network that trains.
    images: per device.
    fsdp: devices that share one copy of the parameters.
    with_ema: whether an average of the parameters is kept.
  """
  leaves = jax.tree.leaves(abstract_params(module))
  parameters = sum(math.prod(leaf.shape) for leaf in leaves)
  state = 4 * (_COPIES + with_ema) * parameters // fsdp
  tokens, width = module.num_tokens, module.embed_dim
  size = jnp.dtype(module.dtype).itemsize
  stream = tokens * width * size
  scores = 4 * module.num_heads * tokens**2
  blocks = [
    8 * stream + 2 * hidden * tokens * size + scores
    for hidden in module.hidden_dims
  ]
  if module.remat:
    return state + images * (module.depth * stream + max(blocks))
  return state + images * sum(blocks)


def device_bytes() -> int | None:
  """Returns the memory of one device, None where the system does not say.

  The devices of a CPU share the machine's memory equally.
  """
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return int(stats['bytes_limit'])
  if jax.default_backend() != 'cpu':
    return None
  try:
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  except (AttributeError, OSError, ValueError):  # not on every system
    return None
  return total // jax.local_device_count()
