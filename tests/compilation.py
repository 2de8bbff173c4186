"""XLA's flags for tests: compile quickly what runs once or twice.

Compilation is most of the suite's time. LLVM leaves programs as they are, which
takes a quarter of the time. Fusion, scheduling and buffers, which tests look
at, are decided before that.
"""

import jaxlib


def flags(devices: int = 1) -> str:
  """A value for `XLA_FLAGS`, to be set before JAX starts its backend.

  Args:
    devices: virtual CPU devices.
  """
  words = [
    f'--xla_force_host_platform_device_count={devices}',
    '--xla_backend_optimization_level=0',
  ]
  # The older emitters compile faster still. Later versions may not know them,
  # and XLA ends the process at a flag that it does not know.
  if tuple(map(int, jaxlib.__version__.split('.')[:2])) <= (0, 10):
    words.append('--xla_cpu_use_fusion_emitters=false')
  return ' '.join(words)
