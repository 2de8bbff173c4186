"""The labels of a split, of which each process of a job reads a part.

Which images are held out depends on all labels. In some formats these are beside
the images: reading them is reading the whole split, once on every host.
"""

import jax
import numpy as np

from lambda_vit_jax.data.sources.dataset import ImageSource, ReadForLabels
from lambda_vit_jax.runtime import processes


def share(split: ImageSource) -> None:
  """Reads this process's part of the labels, and takes those of the others.

  Does nothing where all processes know them already. Every process must call this,
  before one of them reads `split.labels` by itself.
  """
  count = jax.process_count()
  if count == 1 or not isinstance(split, ReadForLabels):
    return
  if all(processes.gather(split.knows_labels())):
    return
  from jax.experimental import multihost_utils

  each = -(-len(split) // count)
  start = min(jax.process_index() * each, len(split))
  stop = min(start + each, len(split))
  part = np.zeros(each, np.int32)
  part[: stop - start] = split.read_labels(start, stop)
  every = multihost_utils.process_allgather(part)
  split.keep_labels(np.asarray(every).reshape(-1)[: len(split)])
