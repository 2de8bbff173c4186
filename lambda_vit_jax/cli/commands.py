"""Commands that need no config: `predict`, `models`, `check-data`."""

import argparse
import fnmatch
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import rich.box
import rich.table
import rich.text

from lambda_vit_jax.cli.console import print_line, stdout_console
from lambda_vit_jax.cli.families import Family, family_of, heading
from lambda_vit_jax.core.errors import DataError, PartialError, UsageError
from lambda_vit_jax.core.files import is_url, user_path
from lambda_vit_jax.core.text import printable
from lambda_vit_jax.models.build import make_module
from lambda_vit_jax.models.macs import size_of
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import VARIANTS
from lambda_vit_jax.runtime import startup
from lambda_vit_jax.runtime.progress import Reporter

# Columns of a terminal that the whole table of variants takes.
_WIDE = 140


class _Parser(argparse.ArgumentParser):
  """Raises instead of exiting, so that `main` owns exit codes."""

  def __init__(self, command: str):
    super().__init__(prog=command, add_help=False)
    self.add_argument('--json', action='store_true')
    self.add_argument('--quiet', action='store_true')

  def error(self, message: str) -> NoReturn:
    raise UsageError(
      f'{self.prog}: {message}; see lambda-vit {self.prog} --help'
    )


def _images(paths: Sequence[str]) -> list[str]:
  """The paths, with the images of a folder in its place.

  Raises:
    DataError: a folder without images.
  """
  from lambda_vit_jax.data.sources.image_folder import find_images

  found = []
  for path in paths:
    # `read_image` refuses a URL, without the other images.
    folder = None if is_url(path) else user_path(path)
    if folder is None or not folder.is_dir():
      found.append(path)
      continue
    names = find_images(folder).images
    if not names:
      raise DataError(f'{path}: a folder that holds no image')
    found.extend(str(folder / name) for name in names)
  return found


def predict(argv: Sequence[str]) -> None:
  """`predict --model=EXPORT_DIR IMAGE…`: the best classes of each image.

  Raises:
    DataError: a folder without images.
    PartialError: images that cannot be read; the others are answered.
    UsageError: a model without a head, or a wrong command line.
  """
  from lambda_vit_jax.checkpoints.load import load_pretrained
  from lambda_vit_jax.data.inputs import read_image
  from lambda_vit_jax.evaluation.scores import top_classes
  from lambda_vit_jax.exporters import runtimes

  parser = _Parser('predict')
  parser.add_argument('--model', required=True)
  parser.add_argument('--variant')
  parser.add_argument('--topk', type=int, default=5)
  parser.add_argument('--runtime', default='')
  parser.add_argument('images', nargs='+')
  options = parser.parse_args(argv)
  if options.topk < 1:
    raise UsageError(f'--topk={options.topk}: must be at least 1')
  startup.use_cache()
  startup.check_devices()
  model = load_pretrained(options.model, options.variant)
  if not model.num_classes:
    raise UsageError(f'--model={options.model}: has no head to predict with')
  program: Callable[[np.ndarray], Any] = model
  if options.runtime:
    program = runtimes.open_export(options.runtime, options.model)
  results: dict[str, Any] = {}
  failed = []
  # One image at a time: one compilation whatever the number of images.
  for path in _images(options.images):
    try:
      image, size = read_image(path, model)
    except DataError as error:
      failed.append(str(error))
      results[path] = {'error': str(error)}
      continue
    results[path] = top_classes(
      model, image[None], size, options.topk, program
    )[0]
    if not options.json:
      print_line(path)
      for name, probability in results[path].items():
        print_line(f'  {100 * probability:6.2f}%  {name}')
  if options.json:
    print(json.dumps(results))
  for line in failed[:-1]:
    print(printable(f'lambda-vit: {line}'), file=sys.stderr)
  if failed:
    raise PartialError(failed[-1])


def _matching(pattern: str) -> list[str]:
  """Names of variants with `pattern` in them, in any case, `*` for anything."""
  if not pattern.strip('*'):
    return sorted(VARIANTS)
  wanted = f'*{pattern.lower()}*'
  return sorted(n for n in VARIANTS if fnmatch.fnmatchcase(n.lower(), wanted))


def models(argv: Sequence[str]) -> None:
  """`models [--filter=TEXT]`: the table of variants, by family.

  Raises:
    UsageError: nothing matches, or a wrong command line.
  """
  parser = _Parser('models')
  parser.add_argument('--filter', default='')
  options = parser.parse_args(argv)
  rows: list[dict[str, Any]] = []
  for name in _matching(options.filter):
    variant = VARIANTS[name]
    module = make_module(variant)
    model = Model(module, {}, name, variant.preprocessing(module.image_size))
    rows.append(
      {
        'name': name,
        'parameters': size_of(module),
        'macs': model.macs(),
        'macs_executed': model.macs(executed=True),
        'image_size': variant.image_size,
        'tokens': module.num_tokens,
        'weights': variant.weights,
        'family': family_of(name).name,
        'checked_against': list(family_of(name).references),
      }
    )
  if not rows:
    raise UsageError(f'--filter={options.filter}: no variant has this in it')
  if options.json:
    print(json.dumps(rows))
    return
  console = stdout_console()
  # Names are whole on a terminal of 80 columns; what runs and where weights are
  # is for wider ones, and for --json.
  wide = console.width >= _WIDE
  caption = 'FAMILY = programs with the same logits, by tests/parity.'
  if not wide:
    caption += ' Where weights are: --json, or a wider terminal.'
  table = rich.table.Table(
    box=rich.box.SIMPLE_HEAD,
    caption=caption,
    pad_edge=False,
    collapse_padding=True,
  )
  table.add_column('name', no_wrap=True)
  for head in ('parameters', 'MACs', 'pixels', 'tokens'):
    table.add_column(head, justify='right', no_wrap=True)
  if wide:
    table.add_column('MACs executed', justify='right')
    table.add_column('weights')
  for family, members in _by_family(rows).items():
    table.add_section()
    table.add_row(rich.text.Text(heading(family), style='bold'))
    for row in members:
      table.add_row(*_cells(row, wide))
  console.print(table)


def _by_family(
  rows: Sequence[dict[str, Any]],
) -> dict[Family, list[dict[str, Any]]]:
  """The rows of each family, families and rows in the order of their names."""
  groups: dict[Family, list[dict[str, Any]]] = {}
  for row in rows:
    groups.setdefault(family_of(row['name']), []).append(row)
  return dict(sorted(groups.items()))


def _cells(row: dict[str, Any], wide: bool) -> list[str]:
  """A row of the table of variants."""
  cells = [row['name'], f'{row["parameters"] / 1e6:.2f} M']
  cells += [f'{row["macs"] / 1e9:.2f} G']
  cells += [str(row['image_size']), str(row['tokens'])]
  if wide:
    cells += [f'{row["macs_executed"] / 1e9:.2f} G', row['weights']]
  return cells


def check_data(argv: Sequence[str]) -> None:
  """`check-data SOURCE`: reads a data set once and reports what it found.

  Raises:
    DataError: a data set that cannot be opened.
    PartialError: a data set with problems.
    UsageError: a wrong command line.
  """
  from lambda_vit_jax.data import check

  parser = _Parser('check-data')
  parser.add_argument('source')
  options = parser.parse_args(argv)
  reporter = Reporter(options.quiet)
  with reporter.bar('check-data', 100) as bar:
    report = check.check_data(
      options.source,
      progress=lambda done, total: bar.update(100 * done // max(total, 1)),
    )
  if options.json:
    print(json.dumps(report.to_json()))
  else:
    stdout_console().print(report)
  if report.problems:
    raise PartialError(
      f'{options.source}: {len(report.problems)} problems, the first: '
      f'{report.problems[0]}'
    )


def benchmark(argv: Sequence[str]) -> None:
  """`benchmark --model=EXPORT_DIR`: an export in every runtime.

  Beside it runs the dense network of the same variant, with random weights,
  on images of noise.

  Raises:
    CheckpointError: not an export.
    UsageError: a wrong command line.
  """
  from lambda_vit_jax.checkpoints.load import load_export
  from lambda_vit_jax.cli import runtime_comparison
  from lambda_vit_jax.cli.report import runtime_table
  from lambda_vit_jax.evaluation import benchmark as measures
  from lambda_vit_jax.evaluation.timing import Limits
  from lambda_vit_jax.exporters import runtimes

  parser = _Parser('benchmark')
  parser.add_argument('--model', required=True)
  parser.add_argument('--runtimes', default=','.join(runtimes.RUNTIMES))
  parser.add_argument('--batch_size', type=int, default=16)
  parser.add_argument('--rounds', type=int)
  parser.add_argument('--seconds', type=float, default=30.0)
  options = parser.parse_args(argv)
  for name in ('batch_size', 'rounds', 'seconds'):
    value = getattr(options, name)
    if value is not None and not value > 0:
      raise UsageError(f'--{name}={value}: must be above 0')
  names = [name for name in options.runtimes.split(',') if name]
  runtimes.check_names(names, '--runtimes')
  startup.use_cache()
  startup.check_devices()
  pruned = load_export(options.model)
  models = {'dense': runtime_comparison.dense_like(pruned), 'pruned': pruned}
  module = pruned.module
  rng = np.random.default_rng(0)

  def noise(count: int) -> np.ndarray:
    shape = (count, *module.image_size, module.in_chans)
    return rng.normal(size=shape).astype(np.float32)

  images = noise(options.batch_size)
  found = runtime_comparison.compare_runtimes(
    names,
    models,
    user_path(options.model),
    runtime_comparison.make_samples(models, images, calibration=noise(8)),
    Limits(options.rounds, options.seconds),
    Reporter(options.quiet),
  )
  measured = measures.conditions(options.batch_size) | found
  measured['versions'] = measures.versions() | found['versions']
  if options.json:
    print(json.dumps(measured))
  else:
    runtime_table.show(measured)


COMMANDS = {
  'predict': predict,
  'models': models,
  'check-data': check_data,
  'benchmark': benchmark,
}
