"""Seeded damage to files, of the kinds that disks and people cause."""

import json

import numpy as np

ODD_VALUES = (
  None,
  True,
  -1,
  0,
  2**60,
  1e308,
  0.1,
  '',
  '../../outside',
  'nan',
  [],
  {},
  [[]],
  'x' * 1000,
)


def damaged(data: bytes, seed: int) -> bytes:
  """`data` with one kind of damage; may happen to equal `data`."""
  rng = np.random.default_rng(seed)
  kind = KINDS[seed % len(KINDS)]
  return kind(data, rng)


def _span(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
  start = int(rng.integers(len(data) + 1))
  return start, start + int(rng.integers(1, 65))


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
  changed = bytearray(data)
  for _ in range(int(rng.integers(1, 9)) if data else 0):
    changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
  return bytes(changed)


def _flip_early(data: bytes, rng: np.random.Generator) -> bytes:
  """Damages the header, where a format decides how much to allocate."""
  return _flip_bits(data[:256], rng) + data[256:]


def _overwrite(data: bytes, rng: np.random.Generator) -> bytes:
  start, end = _span(data, rng)
  return data[:start] + rng.bytes(end - start) + data[end:]


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
  start, end = _span(data, rng)
  return data[:start] + rng.bytes(end - start) + data[start:]


def _remove(data: bytes, rng: np.random.Generator) -> bytes:
  start, end = _span(data, rng)
  return data[:start] + data[end:]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
  start, end = _span(data, rng)
  return data[:end] + data[start:]


def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
  return data[: int(rng.integers(len(data) + 1))]


def _zero(data: bytes, rng: np.random.Generator) -> bytes:
  start = int(rng.integers(len(data) + 1))
  end = min(len(data), start + 512)
  return data[:start] + bytes(end - start) + data[end:]


def _digits(data: bytes, rng: np.random.Generator) -> bytes:
  """Replaces a digit by another: well-formed, but wrong."""
  places = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
  if not places:
    return _flip_bits(data, rng)
  changed = bytearray(data)
  changed[places[int(rng.integers(len(places)))]] = 48 + int(rng.integers(10))
  return bytes(changed)


KINDS = (
  _flip_bits,
  _flip_early,
  _overwrite,
  _insert,
  _remove,
  _repeat,
  _truncate,
  _zero,
  _digits,
)


def odd_json(text: str, seed: int) -> dict:
  """A JSON object with one value, at any depth, replaced or removed."""
  rng = np.random.default_rng(seed)
  fields = json.loads(text)
  places = list(_places(fields))
  container, key = places[int(rng.integers(len(places)))]
  choice = int(rng.integers(len(ODD_VALUES) + 1))
  if choice == len(ODD_VALUES):
    del container[key]
  else:
    container[key] = ODD_VALUES[choice]
  return fields


def _places(value):
  items = (
    list(value.items())
    if isinstance(value, dict)
    else list(enumerate(value))
    if isinstance(value, list)
    else []
  )
  for key, inner in items:
    yield value, key
    yield from _places(inner)
