"""What Linux says of the processor."""

import functools
import pathlib

_FILE = pathlib.Path('/proc/cpuinfo')


@functools.cache
def _values(name: str) -> tuple[str, ...]:
  """One value per core; none on other systems."""
  try:
    lines = _FILE.read_text().splitlines()
  except OSError:
    return ()
  pairs = (line.partition(':') for line in lines)
  return tuple(v.strip() for key, _, v in pairs if key.strip() == name)


def instructions() -> frozenset[str]:
  """Names of its instruction sets, such as `avx2` or `amx_bf16`."""
  found = _values('flags') or _values('Features')
  return frozenset(found[0].split()) if found else frozenset()


def names() -> tuple[str, ...]:
  """The model's name, once per core."""
  return _values('model name')


def has_bfloat16() -> bool:
  """Whether it has instructions for bfloat16."""
  return any(name.endswith('bf16') for name in instructions())
