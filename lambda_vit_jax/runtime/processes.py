"""Multi-process jobs: join, exchange small values, wait for each other.

Values go through the key-value store of JAX's coordination service, which needs
no device: waiting costs no collective, may take hours, and signals are still
handled. Arrays go over the mesh and are not handled here. With a single process
every function returns at once.
"""

import itertools
import json
import os
from collections.abc import Callable
from typing import Any

import jax

from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.runtime import interrupts, roll_call, startup, supervise

# A process that the coordinator has not heard from for this long counts as
# dead. The others then end, well within a minute. A thread of JAX's client sends
# the heartbeats, whatever Python is doing.
_HEARTBEAT_SECONDS = 20
_JOIN_SECONDS = 300
# How long a collective waits for a process that lives but does not come.
_COLLECTIVE_SECONDS = 1200
_PATIENCE_FLAGS = (
  'xla_cpu_collective_timeout_seconds',
  'xla_cpu_collective_call_terminate_timeout_seconds',
)
# Waiting is cut into slices, between which signals are looked at.
_SLICE_MILLISECONDS = 1000
# How long a process that fails waits for others that fail as well.
_LEAVE_MILLISECONDS = 3000

_calls = itertools.count()


class LostProcessError(LambdaVitError):
  """Another process of the job ended, or cannot be reached."""


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the job; call it before anything uses a device.

  Without arguments JAX finds the job: TPU pods, Slurm, Open MPI,
  Kubernetes.

  Raises:
    UsageError: no job is found.
    LambdaVitError: the others did not come, or the address does not work.
  """
  os.environ['XLA_FLAGS'] = with_patience(os.environ.get('XLA_FLAGS', ''))
  # We handle signals ourselves (`runtime.signals`).
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  explicit = coordinator is not None
  try:
    with roll_call.watched():
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        cluster_detection_method='deactivate' if explicit else None,
        initialization_timeout=_JOIN_SECONDS,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
      )
  except ValueError as error:
    raise UsageError(
      f'--distributed: no job of several processes is found ({error}); give '
      '--coordinator, --num_processes and --process_id'
    ) from error
  except RuntimeError as error:
    where = coordinator or 'the coordinator'
    reason = ' '.join(str(error).split())[:200]
    raise LambdaVitError(
      f'{where}: the processes of the job did not find each other ({reason}); '
      'start all of them, with the same --coordinator'
    ) from error


def with_patience(flags: str) -> str:
  """Adds to `XLA_FLAGS` how long collectives on CPUs wait for a slow process.

  XLA waits for 30 seconds, and ends the job if one process reads its data, or
  compiles, for longer. A process that has died is noticed all the same: by its
  connections, or by its heartbeats.
  """
  for name in startup.known_flags(_PATIENCE_FLAGS):
    if name not in flags:
      flags += f' --{name}={_COLLECTIVE_SECONDS}'
  return flags.strip()


def leave(failed: bool = False) -> None:
  """Ends this process's part in the job.

  After a failure, the others get a moment to fail by themselves with a better
  message, before they notice that this process is gone.
  """
  if not jax.distributed.is_initialized():
    return
  if failed:
    try:
      _client().wait_at_barrier('lambda_vit/failed', _LEAVE_MILLISECONDS)
    except Exception:
      return
  jax.distributed.shutdown()


def gather(value: Any) -> list[Any]:
  """The JSON values of all processes, in order; also a barrier.

  Every process must call this, `from_leader` and `barrier` in the same order.

  Raises:
    LostProcessError: another process is gone.
  """
  if jax.process_count() == 1:
    return [value]
  name = f'lambda_vit/{next(_calls)}'
  publish(f'{name}/{jax.process_index()}', value)
  return [await_value(f'{name}/{i}') for i in range(jax.process_count())]


def barrier() -> None:
  """Waits until every process has called this."""
  gather(None)


def from_leader(make: Callable[[], Any]) -> Any:
  """The JSON value that `make` returns in the leading process, for all.

  Raises:
    LostProcessError: the leader is gone, for example because `make` failed.
  """
  if jax.process_count() == 1:
    return make()
  name = f'lambda_vit/{next(_calls)}'
  if is_leader():
    publish(name, make())
  return await_value(name)


def is_leader() -> bool:
  """Whether this process writes files and prints messages."""
  return jax.process_index() == 0


def publish(name: str, value: Any) -> bool:
  """Sets a value for all processes; False if another has already set it.

  Raises:
    LostProcessError: the coordinator is gone.
  """
  try:
    _client().key_value_set(name, json.dumps(value))
  except Exception as error:
    if 'ALREADY_EXISTS' in str(error):
      return False
    raise LostProcessError(lost_line()) from error
  return True


def await_value(name: str, stopped: Callable[[], bool] | None = None) -> Any:
  """Waits for a published value.

  Args:
    name: its name.
    stopped: called once a second; if it returns True, None is returned.

  Raises:
    LostProcessError: the coordinator is gone.
    StoppedError: a signal arrived.
  """
  while stopped is None or not stopped():
    interrupts.check()
    try:
      found = _client().blocking_key_value_get(name, _SLICE_MILLISECONDS)
    except Exception as error:
      if 'DEADLINE_EXCEEDED' in str(error):
        continue
      raise LostProcessError(lost_line()) from error
    return json.loads(found)
  return None


def is_lost(error: BaseException) -> bool:
  """Whether an error of a library means that another process is gone."""
  text = str(error)
  signs = ('Gloo', 'Socket closed', 'Connection reset', 'heartbeat', 'UNAVAIL')
  return jax.distributed.is_initialized() and any(s in text for s in signs)


def lost_line() -> str:
  """The error line for a lost process."""
  return supervise.lost_message(jax.process_index(), jax.process_count())


def _client() -> Any:
  """The client of the coordination service.

  JAX has no public name for it; Orbax takes it from the same place.
  """
  from jax._src import distributed

  return distributed.global_state.client
