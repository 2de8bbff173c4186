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
  # Later versions may not know these, and XLA ends the process at a flag that
  # it does not know.
  if tuple(map(int, jaxlib.__version__.split('.')[:2])) <= (0, 10):
    # The older emitters compile faster still.
    words.append('--xla_cpu_use_fusion_emitters=false')
    # Eight devices on two cores wait for each other; after 40 seconds XLA
    # would take that for a deadlock.
    words.append('--xla_cpu_collective_call_terminate_timeout_seconds=600')
  return ' '.join(words)
