"""Time programs that runtimes have opened, and check what they compute."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.evaluation.accuracy import Predict, evaluate_program
from lambda_vit_jax.evaluation.timing import Limits, measure, ratio
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.runtime.resident import peak_growth

Batches = Iterable[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A program that is still to be opened.

  Attributes:
    model: `dense`, `pruned` or `exported`.
    dtype: what it computes in.
    open: returns the program.
  """

  model: str
  dtype: str
  open: Callable[[], Predict]


@dataclasses.dataclass(frozen=True)
class Samples:
  """The images that programs are run on.

  Attributes:
    images: a batch `[batch, height, width, channels]` float32, normalised, on
      which they are timed and their logits compared.
    logits: of each model on these images, in float32.
    calibration: images that int8 files are calibrated on.
    batches: labelled test images, padded and masked; none for no accuracy.
  """

  images: np.ndarray
  logits: Mapping[str, np.ndarray]
  calibration: np.ndarray
  batches: Sequence[dict[str, np.ndarray]] = ()


def compare_programs(
  candidates: Sequence[Candidate],
  samples: Samples,
  limits: Limits,
  reporter: Reporter,
  title: str,
) -> dict[str, dict[str, dict[str, Any]]]:
  """Opens programs, and times them in turn.

  Args:
    candidates: with one named `dense` in each dtype.
    samples: what they are run on.
    limits: how long to measure.
    reporter: shows progress.
    title: of the progress bar.

  Returns:
    By dtype and model: `images_per_second` (`min`, `median`, `max`) and its
    interval, `speedup` over `dense` of the same dtype and its interval,
    `largest_difference` (of a logit, from `samples.logits`), `peak_bytes`
    (resident memory that opening it and its first call added, if the system
    reports it) and, with labelled images, `top1` and `num_images`.
  """
  images = samples.images
  found: dict[str, dict[str, dict[str, Any]]] = {}
  calls: dict[str, Callable[[], Array]] = {}
  for candidate in candidates:
    program, row = _open(candidate, samples)
    found.setdefault(candidate.dtype, {})[candidate.model] = row
    key = _key(candidate.dtype, candidate.model)
    calls[key] = functools.partial(program, images)
  dtype = candidates[0].dtype
  with reporter.bar(title, 100) as bar:
    seconds = measure(
      calls,
      limits,
      (_key(dtype, 'dense'), _key(dtype, 'pruned')),
      lambda share: bar.update(round(100 * share), '%'),
    )
  for dtype, rows in found.items():
    dense = seconds[_key(dtype, 'dense')]
    for model, row in rows.items():
      row |= speed(len(images), seconds[_key(dtype, model)], dense)
  return found


def _key(dtype: str, model: str) -> str:
  return f'{dtype} {model}'


def _open(
  candidate: Candidate, samples: Samples
) -> tuple[Predict, dict[str, Any]]:
  """Opens a program; returns it, and all of its row but the speed."""

  def start() -> tuple[Predict, np.ndarray]:
    program = candidate.open()
    # Many libraries compile, or allocate, in the first call.
    return program, np.asarray(
      jax.block_until_ready(program(samples.images)), np.float32
    )

  (program, logits), peak = peak_growth(start)
  largest = float(np.abs(logits - samples.logits[candidate.model]).max())
  # JSON has no infinity.
  row: dict[str, Any] = {
    'largest_difference': largest if np.isfinite(largest) else None
  }
  if peak is not None:
    row['peak_bytes'] = peak
  if samples.batches:
    scores = evaluate_program(program, samples.batches, alone=True)
    row |= {name: scores[name] for name in ('top1', 'num_images')}
  return program, row


def speed(
  batch_size: int, seconds: Sequence[float], dense: Sequence[float]
) -> dict[str, Any]:
  """The fields on speed, from the seconds of the same rounds."""
  # The same images in every round: the interval is that of the seconds.
  rate = ratio([batch_size] * len(seconds), seconds)
  over_dense = ratio(dense, seconds)
  return {
    'images_per_second': {
      'min': batch_size / max(seconds),
      'median': rate.value,
      'max': batch_size / min(seconds),
    },
    'images_per_second_interval': rate.interval,
    'speedup': over_dense.value,
    'speedup_interval': over_dense.interval,
  }
