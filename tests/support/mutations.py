"""Seeded damage to files, of the kinds that disks and people cause."""

import gzip
import io
import json
import struct
import zipfile

import numpy as np

ODD_KEYS = (
  '\x1b[2J\x1b]0;title\x07',
  'two\nlines\r',
  '\u202eevil\u2028',
  '[/red] :smile:',
  '<script>alert(1)</script>',
  'k' * 5000,
  '../../outside',
)

ODD_FORMS = (
  *ODD_KEYS,
  '[' * 5000 + ']' * 5000,
  '{"a":' * 200 + '1' + '}' * 200,
  '9' * 5000,
  '-' + '9' * 30,
  '1e999',
  'NaN',
  '-Infinity',
  '{"a": 1, "a": 2}',
  '"\\ud800"',
  '"\\u001b[2J\\u0000\\n"',
  '"' + 'x' * 20_000 + '"',
  '1.5',
  '-0.0',
  '[1, 2',
  "'single'",
  '/* comment */ 1',
)

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


def damaged_json(data: bytes, seed: int) -> bytes:
  """JSON with an odd value, key or form; every third time, plain damage."""
  rng = np.random.default_rng(seed)
  if seed % 3 == 0:
    return damaged(data, int(rng.integers(2**31)))
  try:
    text = data.decode()
    if seed % 3 == 1:
      return json.dumps(odd_json(text, seed)).encode()
    return _odd_form(text, rng)
  except ValueError:
    # No JSON, or no value in it to replace.
    return damaged(data, seed)


def damaged_lines(data: bytes, seed: int) -> bytes:
  """JSON Lines with one line damaged, repeated or out of order."""
  lines = data.split(b'\n')
  index = int(np.random.default_rng(seed).integers(len(lines)))
  lines[index] = damaged_json(lines[index] or b'{"stage": 1}', seed)
  return b'\n'.join(lines)


def _odd_form(text: str, rng: np.random.Generator) -> bytes:
  """JSON that parsers disagree about, or that shows as something else.

  A marker takes the place of one value, and then what JSON writers do not
  write takes the place of the marker.
  """
  fields = json.loads(text)
  places = list(_places(fields))
  container, key = places[int(rng.integers(len(places)))]
  form = ODD_FORMS[int(rng.integers(len(ODD_FORMS)))]
  if form in ODD_KEYS and isinstance(container, dict):
    # A key instead of a value.
    container[form] = container.pop(key)
    return json.dumps(fields).encode()
  container[key] = '@@'
  return json.dumps(fields).replace('"@@"', form).encode(errors='replace')


def damaged_header(data: bytes, seed: int) -> bytes:
  """A safetensors file whose header, which is JSON, is damaged as such."""
  (size,) = struct.unpack('<Q', data[:8])
  header, arrays = data[8 : 8 + size], data[8 + size :]
  fields = json.loads(header)
  ours = fields.get('__metadata__', {}).get('lambda_vit_jax')
  if ours and seed % 2:
    # The description within, without the digest that would refuse it.
    changed = damaged_json(ours.encode(), seed // 2)
    text = changed.decode('utf-8', 'replace')
    fields['__metadata__'] = {'lambda_vit_jax': text}
    header = json.dumps(fields).encode()
  else:
    header = damaged_json(header, seed // 2)
  return struct.pack('<Q', len(header)) + header + arrays


def damaged_member(data: bytes, seed: int) -> bytes:
  """A zip archive with one file damaged, and checksums that fit."""
  rng = np.random.default_rng(seed)
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(data)) as source:
    names = source.namelist()
    chosen = int(rng.integers(len(names)))
    with zipfile.ZipFile(out, 'w') as archive:
      for index, name in enumerate(names):
        member = source.read(name)
        if index == chosen:
          # Its first bytes are the header of an array.
          member = damaged(member[:128], seed) + member[128:]
          name = name if seed % 5 else f'{ODD_KEYS[seed % len(ODD_KEYS)]}.npy'
        archive.writestr(name, member)
  return out.getvalue()


def damaged_gzip(data: bytes, seed: int) -> bytes:
  """A gzip file whose content is damaged; every third time, itself."""
  if seed % 3 == 0:
    return damaged(data, seed)
  content = gzip.decompress(data)
  return gzip.compress(damaged(content[:64], seed) + content[64:], 1)


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
