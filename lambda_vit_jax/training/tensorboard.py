"""TensorBoard event files, written without TensorFlow or protobuf.

An event file is a row of TFRecords: the length of a message as uint64, that
length's masked CRC-32C, the message, and its masked CRC-32C, little-endian.
The message is an `Event` protocol buffer; of its fields only those are
written that a scalar needs.
"""

import functools
import struct
import time
from collections.abc import Iterator, Mapping

from etils import epath

# Field numbers of TensorFlow's event.proto and summary.proto.
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_VALUE = 1
_TAG, _SIMPLE_VALUE = 1, 2
_STATUS, _STATUS_START = 1, 1
# Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def crc32c(data: bytes) -> int:
  """CRC-32C (Castagnoli, RFC 3720) of `data`."""
  table = _crc_table()
  value = 0xFFFFFFFF
  for byte in data:
    value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
  return value ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
  table = []
  for value in range(256):
    for _ in range(8):
      value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    table.append(value)
  return tuple(table)


def masked_crc(data: bytes) -> int:
  """The checksum as TFRecords store it: rotated by 15 bits, plus a number."""
  value = crc32c(data)
  rotated = (value >> 15) | (value << 17)
  return (rotated + 0xA282EAD8) & 0xFFFFFFFF


def record(message: bytes) -> bytes:
  """One TFRecord."""
  length = struct.pack('<Q', len(message))
  return b''.join(
    (
      length,
      struct.pack('<I', masked_crc(length)),
      message,
      struct.pack('<I', masked_crc(message)),
    )
  )


def _varint(value: int) -> bytes:
  parts = bytearray()
  while value > 0x7F:
    parts.append(value & 0x7F | 0x80)
    value >>= 7
  parts.append(value)
  return bytes(parts)


def _field(number: int, wire_type: int, payload: bytes) -> bytes:
  key = _varint(number << 3 | wire_type)
  if wire_type == _BYTES:
    return key + _varint(len(payload)) + payload
  return key + payload


def _event(step: int, number: int, payload: bytes) -> bytes:
  """An `Event` with one of its payloads, stamped with the time."""
  return b''.join(
    (
      _field(_WALL_TIME, _FIXED64, struct.pack('<d', time.time())),
      _field(_STEP, _VARINT, _varint(step)),
      _field(number, _BYTES, payload),
    )
  )


def _summary(values: Mapping[str, float]) -> Iterator[bytes]:
  for tag, value in values.items():
    yield _field(
      _VALUE,
      _BYTES,
      _field(_TAG, _BYTES, tag.encode())
      + _field(_SIMPLE_VALUE, _FIXED32, struct.pack('<f', value)),
    )


class TensorBoardTracker:
  """Scalars in `WORKDIR/tensorboard/STAGE/`, one TensorBoard run per stage.

  A resumed stage opens the next file with the event by which TensorBoard
  forgets what earlier files say of the steps that are done again; nothing is
  rewritten under a TensorBoard that is reading.
  """

  def __init__(self, workdir: str | epath.Path):
    self._root = epath.Path(workdir) / 'tensorboard'
    self._files: dict[str, epath.Path] = {}

  def begin(self, stage: str, step: int) -> None:
    """Starts a file for what follows `step`."""
    folder = self._root / stage
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads a folder's files in the order of their names.
    number = len(list(folder.glob('events.out.tfevents.*')))
    path = folder / f'events.out.tfevents.{number:010d}.lambda_vit_jax'
    start = _field(_STATUS, _VARINT, _varint(_STATUS_START))
    path.write_bytes(
      record(_event(0, _FILE_VERSION, b'brain.Event:2'))
      + record(_event(step + 1, _SESSION_LOG, start))
    )
    self._files[stage] = path

  def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Adds one event with all of `values`; it is on disk at return."""
    if stage not in self._files:
      self.begin(stage, step - 1)
    message = _event(step, _SUMMARY, b''.join(_summary(values)))
    with self._files[stage].open('ab') as file:
      file.write(record(message))

  def close(self) -> None:
    """Nothing is open between two writes."""
