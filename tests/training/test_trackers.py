"""Event files as TensorBoard reads them; W&B through a stand-in."""

import struct
import sys
import types

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.training import tensorboard, trackers
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics


# RFC 3720, appendix B.4.
@pytest.mark.parametrize(
  'data, expected',
  [
    (bytes(32), 0x8A9136AA),
    (b'\xff' * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
  ],
)
def test_checksums_of_the_standard(data, expected):
  assert tensorboard.crc32c(data) == expected


def _event_class():
  """TensorFlow's `Event`, as far as it is used, built by protobuf itself."""
  file = descriptor_pb2.FileDescriptorProto(name='event.proto', syntax='proto3')
  field = descriptor_pb2.FieldDescriptorProto

  def add(name, *fields):
    message = file.message_type.add(name=name)
    for number, label, kind, type_name in fields:
      message.field.add(
        name=label,
        number=number,
        type=getattr(field, f'TYPE_{kind}'),
        type_name=type_name or None,
        label=(
          field.LABEL_REPEATED if label == 'value' else field.LABEL_OPTIONAL
        ),
      )

  add('Value', (1, 'tag', 'STRING', ''), (2, 'simple_value', 'FLOAT', ''))
  add('Summary', (1, 'value', 'MESSAGE', '.Value'))
  add('SessionLog', (1, 'status', 'INT32', ''))
  add(
    'Event',
    (1, 'wall_time', 'DOUBLE', ''),
    (2, 'step', 'INT64', ''),
    (3, 'file_version', 'STRING', ''),
    (5, 'summary', 'MESSAGE', '.Summary'),
    (7, 'session_log', 'MESSAGE', '.SessionLog'),
  )
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName('Event'))


EVENT = _event_class()


def _records(data):
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    body, data = data[: 12 + length + 4], data[12 + length + 4 :]
    message = body[12:-4]
    assert body == tensorboard.record(message)
    yield EVENT.FromString(message)


def _shown(folder):
  """Scalars by (step, tag) after TensorBoard's rule for restarts."""
  found = {}
  for path in sorted(folder.glob('*tfevents*')):
    events = list(_records(path.read_bytes()))
    assert events[0].file_version == 'brain.Event:2'
    for event in events:
      if event.session_log.status == 1:
        found = {key: v for key, v in found.items() if key[0] < event.step}
      for value in event.summary.value:
        assert (event.step, value.tag) not in found
        found[event.step, value.tag] = value.simple_value
  return found


@given(st.integers(0, 2**62), st.floats(width=32, allow_nan=False))
def test_protobuf_reads_what_we_write(step, value):
  message = tensorboard._event(
    step, 5, b''.join(tensorboard._summary({'λ': value, 'loss': 1.0}))
  )
  event = EVENT.FromString(message)
  assert event.step == step
  assert [v.tag for v in event.summary.value] == ['λ', 'loss']
  assert event.summary.value[0].simple_value == value


def test_a_resumed_stage_shows_each_step_once(tmp_path):
  for start, stop in ((0, 6), (4, 9)):
    writer = MetricsWriter(
      tmp_path, trackers=[tensorboard.TensorBoardTracker(tmp_path)]
    )
    writer.rewind('dilute', start)
    for step in range(start + 1, stop):
      # Halves are exact in float32.
      writer.write('dilute', step, loss=start + step / 2)
    writer.close()
  rows = {
    (r['step'], 'loss'): r['loss']
    for r in read_metrics(tmp_path / 'metrics.jsonl')
  }
  assert [step for step, _ in rows] == list(range(1, 9))
  assert _shown(tmp_path / 'tensorboard' / 'dilute') == rows


class Wandb(types.ModuleType):
  """What we use of W&B: runs by id, whose steps only go up."""

  def __init__(self):
    super().__init__('wandb')
    self.runs = {}
    self.open = None

  def init(self, **options):
    assert self.open is None
    assert options['resume'] == 'allow'
    assert options['config']['seed'] == 0
    self.open = self.runs.setdefault(options['id'], {})
    return self

  def log(self, values, step):
    if step > max(self.open, default=-1):
      self.open[step] = values

  def finish(self):
    self.open = None


CONFIG = {'seed': 0, 'metrics': {'tensorboard': False, 'wandb': 'project'}}


def test_a_resumed_stage_goes_on_in_its_wandb_run(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  for start, stop in ((0, 6), (4, 9)):
    writer = MetricsWriter(
      tmp_path, trackers=trackers.make_trackers(CONFIG, tmp_path)
    )
    for stage in ('pretrain', 'dilute'):
      writer.rewind(stage, start)
      for step in range(start + 1, stop):
        writer.write(stage, step, loss=step / 2)
    writer.close()
    assert wandb.open is None
  assert len(wandb.runs) == 2
  for name, run in wandb.runs.items():
    assert name.endswith(('-pretrain', '-dilute'))
    assert run == {step: {'loss': step / 2} for step in range(1, 9)}


def test_only_the_leader_tracks(tmp_path):
  writer = MetricsWriter(
    tmp_path,
    leader=False,
    trackers=[tensorboard.TensorBoardTracker(tmp_path)],
  )
  writer.rewind('dilute', 0)
  writer.write('dilute', 1, loss=1.0)
  assert not list(tmp_path.iterdir())


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
  # None in sys.modules: the import fails as if nothing were there.
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(UsageError, match=r'lambda_vit_jax\[wandb\]'):
    trackers.make_trackers(CONFIG, tmp_path)


@pytest.mark.parametrize(
  'settings',
  [{'tensorboard': 1, 'wandb': ''}, {'tensorboard': False, 'wandb': None}],
)
def test_wrong_values_are_named(settings, tmp_path):
  with pytest.raises(UsageError, match=r'config\.metrics\.'):
    trackers.make_trackers({'metrics': settings}, tmp_path)
