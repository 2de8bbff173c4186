"""Read TensorBoard's event files as TensorBoard does."""

import struct

from tensorboardX.proto import event_pb2


def _events(data):
  """The events of a file: length, checksum, message, checksum."""
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    yield event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[12 + length + 4 :]


def shown(folder):
  """Scalars by (step, tag) after TensorBoard's rule for restarts."""
  found = {}
  for path in sorted(folder.glob('*tfevents*')):
    events = list(_events(path.read_bytes()))
    assert events[0].file_version == 'brain.Event:2'
    for event in events:
      if event.session_log.status == event_pb2.SessionLog.START:
        found = {key: v for key, v in found.items() if key[0] < event.step}
      for value in event.summary.value:
        assert (event.step, value.tag) not in found
        found[event.step, value.tag] = value.simple_value
  return found
