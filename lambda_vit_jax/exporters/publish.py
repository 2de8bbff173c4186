"""`push_to_hub`: an export with its model card, on the Hugging Face hub."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.checkpoints import hub
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import read_json, user_path, write_text
from lambda_vit_jax.core.schema import Object
from lambda_vit_jax.exporters.export import export
from lambda_vit_jax.exporters.model_card import make_card
from lambda_vit_jax.models.model import Model

_LOG = logging.getLogger(__name__)

CARD = 'README.md'

# Files of a run that a card quotes.
_FACTS = ('selection', 'evaluation', 'benchmark', 'config')


@dataclasses.dataclass(frozen=True)
class Published:
  """Where a model went.

  Attributes:
    folder: the export with its card.
    url: its page on the hub; empty if it could not be reached.
    reason: why not, in one line.
  """

  folder: epath.Path
  url: str = ''
  reason: str = ''


@check_arguments
def push_to_hub(
  model: Model,
  repository: str,
  directory: str | epath.PathLike | None = None,
  run: str | epath.PathLike | None = None,
  formats: str | Iterable[str] = ('orbax', 'safetensors', 'stablehlo', 'onnx'),
  licence: str = '',
) -> Published:
  """Exports a model, writes its card, and uploads both.

  Needs the extra `[hub]` and a login (`hf auth login`). Without network or
  login the folder is written and a warning says how to upload it.

  Args:
    model: dense or pruned; see `lv.export`.
    repository: `OWNER/NAME`; made if it is new.
    directory: of the export; by default NAME, in the current folder.
    run: a workdir, whose results the card quotes.
    formats: see `lv.export`.
    licence: of the weights, as the hub names it (`apache-2.0`).

  Returns:
    The folder, and the page or the reason why there is none.

  Raises:
    CheckpointError: a malformed name, a damaged file of the run, or a folder
      that holds none.
    LambdaVitError: see `lv.export`.
  """
  hub.check_repository(repository)
  folder = user_path(directory or repository.rpartition('/')[2])
  if run is not None:
    # Before the export, which may take long.
    run_facts(run)
  report = export(model, folder, formats=formats)
  return publish(model, folder, repository, report, run, licence)


def publish(
  model: Model,
  folder: epath.Path,
  repository: str,
  report: Mapping[str, Any],
  run: str | epath.PathLike | None = None,
  licence: str = '',
) -> Published:
  """Writes the card into an export, and uploads the folder.

  Args:
    model: what was exported.
    folder: the export.
    repository: `OWNER/NAME`.
    report: what `export` returned.
    run: a workdir, whose results the card quotes.
    licence: of the weights.

  Raises:
    CheckpointError: a damaged file of the run.
  """
  facts = {'export': report} | ({} if run is None else run_facts(run))
  write_text(folder / CARD, make_card(model, repository, facts, licence))
  try:
    url = hub.upload(folder, repository)
  except CheckpointError as error:
    _LOG.warning(
      '%s; %s is complete: upload it with `hf upload %s %s`',
      error,
      folder,
      repository,
      folder,
    )
    return Published(folder, reason=str(error))
  _LOG.warning('%s: uploaded to %s', folder, url)
  return Published(folder, url)


def run_facts(run: str | epath.PathLike) -> dict[str, dict[str, Any]]:
  """The results of a run that a card quotes, as far as there are any.

  Raises:
    CheckpointError: a damaged file, or none of them.
  """
  found = {}
  for name in _FACTS:
    path = user_path(run) / f'{name}.json'
    if path.exists():
      found[name] = read_json(path, Object(), 'run its stage again')
  if not found:
    raise CheckpointError(
      f'{run}: holds no results of a run ({", ".join(_FACTS)} as .json); give a '
      'workdir, or leave `run` out'
    )
  return found
