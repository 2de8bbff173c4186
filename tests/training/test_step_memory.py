"""What a step needs is said before it runs."""

import jax
import jax.numpy as jnp
import pytest

from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training import step_memory

KIB = 256


@pytest.fixture
def said():
  lines = []
  reporter = Reporter()
  reporter.say = lines.append
  reporter.warn = lambda line: lines.append(f'warning: {line}')
  return lines, reporter


def product(x, y):
  return (x @ y) @ x


def test_arguments_results_and_what_is_between_count(said, monkeypatch):
  """Three matrices of 256 KiB are there, or are made; one is in between."""
  lines, reporter = said
  monkeypatch.setattr(step_memory, 'GIB', 1024)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 1)
  monkeypatch.setattr(step_memory, 'free_bytes', lambda: (None, 'here'))
  step = compilation.Program(product)
  x = y = jnp.ones((KIB, KIB))
  step_memory.report('pretrain', 64, step, (x, y), reporter)
  (line,) = lines
  assert line.startswith('pretrain: a step of 64 images needs ')
  needed = float(line.split()[-3])
  assert 3 * KIB <= needed <= 5 * KIB


@pytest.mark.parametrize('free, warned', [(2**40, False), (1000, True)])
def test_more_than_there_is_is_a_warning(said, monkeypatch, free, warned):
  lines, reporter = said
  monkeypatch.setattr(step_memory, 'free_bytes', lambda: (free, 'here'))
  x = jnp.ones((KIB, KIB))
  step_memory.report(
    'dilute', 8, compilation.Program(product), (x, x), reporter
  )
  assert len(lines) == 1 + warned
  if warned:
    assert 'warning: dilute: ' in lines[1]
    assert 'lower batch_size' in lines[1]


def test_this_machine_has_some_memory():
  free, where = step_memory.free_bytes()
  assert where == 'here'
  assert free is None or free > 2**20
