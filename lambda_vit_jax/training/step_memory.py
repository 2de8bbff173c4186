"""Say what a training step needs in memory, before the first one runs."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from lambda_vit_jax.runtime.progress import Reporter

GIB = 2**30


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
