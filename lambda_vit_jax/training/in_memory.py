"""Train on images that are in memory, without checkpoints."""

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.core.errors import ModelError, not_finite
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training.job import Job
from lambda_vit_jax.training.step import init_state, make_train_step


def run(
  job: Job,
  params: Params,
  mesh: Mesh,
  name: str,
  on_progress: Callable[[int, int], None] | None = None,
) -> Params:
  """Runs all phases of a job; returns the parameters, or their average.

  Args:
    job: what to do; its evaluations are left out.
    params: to start from; not changed.
    mesh: devices to train on.
    name: of the function, for the message.
    on_progress: is called with steps done and steps in all.

  Raises:
    ModelError: a loss that is not finite.
  """
  # The step donates its state, so the caller's arrays are copied.
  state = init_state(
    jax.tree.map(np.array, params), job.optimizer, bool(job.loss.ema_decay)
  )
  teacher, taught = job.teacher or (None, None)
  if taught is not None:
    taught = sharding.replicate(taught, mesh)
  stream = job.make_batches(0)
  done = 0
  for phase in job.phases:
    state = phase.prune(state)
    shardings = sharding.tree_shardings(state, mesh)
    state = jax.device_put(state, shardings)
    step = make_train_step(
      phase.module,
      job.optimizer,
      job.loss,
      job.dilution.within(phase.blend),
      job.seed,
      mesh,
      shardings,
      teacher,
    )
    while done < phase.until:
      batch = sharding.put_batch(next(stream), mesh)
      state, values = step(state, batch, taught)
      done += 1
      if not np.isfinite(values['loss']):
        if done == 1:
          # That of the networks as they were given.
          raise not_finite(name)
        raise ModelError(
          f'{name}: the loss is not finite at step {done}; give a smaller '
          'learning_rate'
        )
      if on_progress is not None:
        on_progress(done, job.total_steps)
  return jax.device_get(state.averaged)


def batches(
  arrays: Mapping[str, np.ndarray], batch_size: int, seed: int, first: int
) -> Iterator[dict[str, np.ndarray]]:
  """This process's part of the batches from step `first` on, without end.

  One permutation of the images follows another; a batch may span two.

  Args:
    arrays: of all images, of every process, by name.
    batch_size: over all processes.
    seed: of the permutations.
    first: the step of the first batch.
  """
  count, step = len(arrays['image']), first
  local = batch_size // jax.process_count()
  begin = jax.process_index() * local

  @functools.lru_cache(maxsize=2)
  def order(epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)

  while True:
    places = range(step * batch_size, (step + 1) * batch_size)
    rows = [order(place // count)[place % count] for place in places]
    mine = rows[begin : begin + local]
    yield {name: array[mine] for name, array in arrays.items()}
    step += 1
