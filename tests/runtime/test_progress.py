"""Lines of progress in a file."""

import pytest

from lambda_vit_jax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 0.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(progress, 'time', clock)
  return clock


def test_a_file_shows_a_line_every_ten_seconds_and_the_last(clock, capsys):
  with progress.Reporter().bar('pretrain', 5) as bar:
    for step in range(1, 6):
      clock.now += 4
      bar.update(step, f'loss {step}')
    bar.update(5, 'again')
  # Steps 1 to 5 end after 4, 8, 12, 16 and 20 seconds.
  assert capsys.readouterr().err.splitlines() == [
    'pretrain: 3/5 loss 3  0:00:08 left',
    'pretrain: 5/5 loss 5',
  ]


def test_quiet_shows_nothing(clock, capsys):
  with progress.Reporter(quiet=True).bar('pretrain', 1) as bar:
    bar.advance()
  assert capsys.readouterr().err == ''


def test_the_time_left_is_at_the_speed_since_it_began(clock, capsys):
  """What an earlier command has done took no time of this one."""
  with progress.Reporter().bar('dilute', 1000) as bar:
    bar.update(900)
    clock.now += 20
    bar.update(920)
  assert capsys.readouterr().err == 'dilute: 920/1000  0:01:20 left\n'
