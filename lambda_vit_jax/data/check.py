"""Read a data set once and report what is in it (`lambda-vit check-data`)."""

import collections
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.data import decode
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.masks import MaskError, MaskRules
from lambda_vit_jax.data.sources.dataset import Dataset, ImageSource, counted
from lambda_vit_jax.data.sources.registry import open_dataset, open_masks

# Images handed to the threads at a time, which bounds memory.
_AT_ONCE = 256
# Problems named in the table's caption; `problems` has them all.
_SHOWN_PROBLEMS = 3
_LEVELS = np.arange(256) / 255


@dataclasses.dataclass(frozen=True)
class SplitReport:
  """Statistics of one split.

  Attributes:
    num_images: readable and broken images.
    class_counts: images per class, in the order of the classes; where pixels
      have classes, images in which the class occurs.
    heights: least, median and greatest height, in pixels, of the images as
      they are shown (turned by their EXIF orientation).
    widths: the same of the widths.
    modes: Pillow's mode (`L`, `RGB`, `RGBA`, …) to number of images.
    broken: `(name, reason)` of every image that cannot be decoded.
    mean: per channel of values in [0, 1]; every image weighs the same. One
      channel if all images are grey, else three.
    std: the same of the standard deviation.
    repeated: images whose bytes occur earlier in this split.
    few_bits: 16-bit images that come out nearly black, as they hold 12 bits
      or fewer.
    name: what the source calls the split.
    left_out: by ending, how many files are no images.
  """

  num_images: int
  class_counts: tuple[int, ...]
  heights: tuple[int, int, int]
  widths: tuple[int, int, int]
  modes: dict[str, int]
  broken: tuple[tuple[str, str], ...]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  repeated: int
  few_bits: int
  name: str
  left_out: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class DataReport(Shown):
  """Statistics of a data set, and its problems.

  Attributes:
    name: the source.
    class_names: in the order of the labels.
    train: the training split.
    test: the held-out split.
    leaked: test images whose bytes are also in the training split.
  """

  name: str
  class_names: tuple[str, ...]
  train: SplitReport
  test: SplitReport
  leaked: int

  @property
  def problems(self) -> tuple[str, ...]:
    """One line per problem to fix, or to know of, before training."""
    lines = [
      f'{name} cannot be decoded ({reason})'
      for split in (self.train, self.test)
      for name, reason in split.broken
    ]
    for where, split in (('train', self.train), ('test', self.test)):
      lines.extend(
        f'class {name} has no image in {where}'
        for name, count in zip(
          self.class_names, split.class_counts, strict=True
        )
        if not count
      )
      if split.repeated:
        lines.append(f'{split.repeated} images of {where} occur twice or more')
      if split.few_bits:
        lines.append(
          f'{split.few_bits} 16-bit images of {where} have no value above 4095 '
          'and come out nearly black'
        )
    if self.leaked:
      lines.append(f'{self.leaked} test images are also in train')
    return tuple(lines)

  def to_json(self) -> dict[str, Any]:
    """Returns plain dicts and lists, with the problems."""
    return dataclasses.asdict(self) | {'problems': list(self.problems)}

  def table(self) -> Table:
    """A column per split, a row per statistic."""
    train = _column(self.train, self.class_names)
    test = _column(self.test, self.class_names)
    rows = [(name, train[name], test[name]) for name in train]
    return Table(
      title=self.name,
      header=('', self.train.name, self.test.name),
      rows=(*rows, ('also in train', '', str(self.leaked))),
      caption='; '.join(self.problems[:_SHOWN_PROBLEMS]),
    )


def check_data(
  source: str | Dataset,
  cache_dir: str | None = None,
  progress: Callable[[int, int], None] | None = None,
) -> DataReport:
  """Decodes every image of a data set once, in threads.

  Args:
    source: a name that `open_dataset` takes, or an opened data set.
    cache_dir: see `open_dataset`.
    progress: called with images done and images in all, now and then.

  Returns:
    The report; it names broken images instead of raising.

  Raises:
    DataError: the data set cannot be opened, or has no readable image.
    UsageError: `source` names no kind of data set.
  """
  if isinstance(source, str):
    masks = source.startswith('segmentation_folder:')
    source = open_masks(source) if masks else open_dataset(source, cache_dir)
  total = len(source.train) + len(source.test)
  done = 0

  def advance(count: int) -> None:
    nonlocal done
    done += count
    if progress is not None:
      progress(done, total)

  train, train_digests = _check_split(source, 0, advance)
  test, test_digests = _check_split(source, 1, advance)
  return DataReport(
    name=source.name,
    class_names=source.class_names,
    train=train,
    test=test,
    leaked=sum(
      count for digest, count in test_digests.items() if digest in train_digests
    ),
  )


@dataclasses.dataclass(frozen=True)
class _Found:
  """Statistics of one image; `reason` is set if it is broken."""

  name: str
  classes: tuple[int, ...] = ()
  digest: bytes = b''
  size: tuple[int, int] = (0, 0)
  mode: str = ''
  moments: np.ndarray | None = None
  few_bits: bool = False
  reason: str = ''


def _inspect(source: ImageSource, num_classes: int, index: int) -> _Found:
  try:
    record = source[index]
  except DataError as error:
    return _Found(source.describe(index), reason=str(error))
  data, label = record['image'], record['label']
  raw = data.tobytes() if isinstance(data, np.ndarray) else data
  digest = hashlib.blake2b(raw, digest_size=12).digest()
  has_mask = isinstance(label, bytes | np.ndarray)
  # An image that cannot be read still counts for the class it has.
  known: tuple[int, ...] = () if has_mask else (int(label),)
  classes = known
  try:
    image = decode.open_image(data)
    size, mode = decode.shown_size(image), image.mode
    if has_mask:
      found = np.unique(MaskRules(num_classes).read(label, size))
      classes = tuple(found[found >= 0].tolist())
    histogram = np.reshape(decode.load(image, 3).histogram(), (3, 256))
    few_bits = decode.has_few_bits(image)
  except (UndecodableError, MaskError) as error:
    return _Found(source.describe(index), known, digest, reason=str(error))
  share = histogram / histogram[0].sum()
  moments = np.stack([share @ _LEVELS, share @ _LEVELS**2])
  return _Found('', classes, digest, size, mode, moments, few_bits)


def _scan(source: ImageSource, num_classes: int) -> Iterator[list[_Found]]:
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(source), _AT_ONCE):
      indices = range(start, min(start + _AT_ONCE, len(source)))
      inspect = functools.partial(_inspect, source, num_classes)
      yield list(pool.map(inspect, indices))


def _check_split(
  dataset: Dataset, which: int, advance: Callable[[int], None]
) -> tuple[SplitReport, collections.Counter[bytes]]:
  """Reads the training split (0) or the held-out one (1)."""
  source = (dataset.train, dataset.test)[which]
  num_classes = dataset.num_classes
  few_bits = 0
  counts = np.zeros(num_classes, np.int64)
  digests: collections.Counter[bytes] = collections.Counter()
  sizes: collections.Counter[tuple[int, int]] = collections.Counter()
  modes: collections.Counter[str] = collections.Counter()
  broken = []
  moments = np.zeros((2, 3))
  for found in _scan(source, num_classes):
    for one in found:
      counts[list(one.classes)] += 1
      if one.digest:
        digests[one.digest] += 1
      if one.moments is None:
        broken.append((one.name, one.reason))
        continue
      sizes[one.size] += 1
      modes[one.mode] += 1
      moments += one.moments
      few_bits += one.few_bits
    advance(len(found))
  readable = sizes.total()
  if not readable:
    raise DataError(
      f'no image of {source.describe(0)} and those after it can be decoded: '
      f'{broken[0][1] if broken else "the split is empty"}'
    )
  mean, square = moments / readable
  std = np.sqrt(np.maximum(square - mean**2, 0))
  channels = 1 if all(mode in decode.GREY_MODES for mode in modes) else 3
  report = SplitReport(
    num_images=len(source),
    class_counts=tuple(counts.tolist()),
    heights=_range(sizes, 1),
    widths=_range(sizes, 0),
    modes=dict(modes.most_common()),
    broken=tuple(broken),
    mean=tuple(mean[:channels].tolist()),
    std=tuple(std[:channels].tolist()),
    repeated=digests.total() - len(digests),
    few_bits=few_bits,
    name=dataset.splits[which],
    left_out=dataset.left_out[which],
  )
  return report, digests


def _range(
  sizes: collections.Counter[tuple[int, int]], axis: int
) -> tuple[int, int, int]:
  """Least, lower median and greatest length along one axis."""
  lengths = np.sort(
    np.repeat([size[axis] for size in sizes], list(sizes.values()))
  )
  least, median, greatest = lengths[[0, (len(lengths) - 1) // 2, -1]].tolist()
  return least, median, greatest


def _column(split: SplitReport, class_names: tuple[str, ...]) -> dict[str, str]:
  """The statistics of a split by name, as text."""

  def listed(values: tuple[float, ...], form: str = '') -> str:
    return ', '.join(format(value, form) for value in values)

  counts = split.class_counts
  fewest, most = (
    f'{counts[place]:,} ({class_names[place]})'
    for place in (int(np.argmin(counts)), int(np.argmax(counts)))
  )
  return {
    'images': f'{split.num_images:,}',
    'classes': str(np.count_nonzero(counts)),
    'fewest per class': fewest,
    'most per class': most,
    'height: least, median, greatest': listed(split.heights),
    'width: least, median, greatest': listed(split.widths),
    'modes': counted(split.modes),
    'mean': listed(split.mean, '.4f'),
    'standard deviation': listed(split.std, '.4f'),
    'undecodable': str(len(split.broken)),
    'repeated': str(split.repeated),
    'files left out': counted(split.left_out) or '0',
  }
