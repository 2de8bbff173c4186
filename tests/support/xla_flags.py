"""XLA flags for tests: compile fast, since programs run once or twice.

Compilation is most of the suite's time. Without LLVM optimization it takes a
quarter as long. Fusion, scheduling and buffers, which tests inspect, are decided
before LLVM.
"""

import jaxlib


def flags(devices: int = 1) -> str:
  """Value of `XLA_FLAGS`, to be set before JAX starts its backend.

  Args:
    devices: virtual CPU devices.
  """
  words = [
    f'--xla_force_host_platform_device_count={devices}',
    '--xla_backend_optimization_level=0',
  ]
  # XLA aborts on flags that it does not know, and later versions may have
  # dropped these.
  if tuple(map(int, jaxlib.__version__.split('.')[:2])) <= (0, 10):
    # The older emitters compile even faster.
    words.append('--xla_cpu_use_fusion_emitters=false')
    # One module of code instead of 32 takes two thirds of the time.
    words.append('--xla_cpu_parallel_codegen_split_count=1')
    # Eight devices on two cores wait for each other, which XLA takes for a
    # deadlock after 40 seconds.
    words.append('--xla_cpu_collective_call_terminate_timeout_seconds=600')
  return ' '.join(words)
