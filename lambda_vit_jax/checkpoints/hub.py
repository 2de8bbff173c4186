"""Download from the Hugging Face hub and upload to it (extra `[hub]`)."""

import re
from typing import Any

from etils import epath

from lambda_vit_jax.core.errors import CheckpointError, LambdaVitError
from lambda_vit_jax.models.variants import get_variant

_NAME = re.compile(r'hf[-_]hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?')


_REPOSITORY = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


# How other programs than timm say that images are prepared.
_OPTIONAL = ('preprocessor_config.json', 'open_clip_config.json')


def is_hub_name(where: str) -> bool:
  """Whether `where` is of the form `hf-hub:OWNER/NAME[@REVISION]`."""
  return where.startswith(('hf-hub:', 'hf_hub:'))


def download(where: str) -> epath.Path:
  """Fetches `config.json` and `model.safetensors`, or finds them cached.

  And, from other owners than timm, what says how images are prepared.

  Args:
    where: `hf-hub:OWNER/NAME[@REVISION]`.

  Returns:
    The folder of the hub's cache that holds both. Files in the cache are not
    downloaded again; `HF_HUB_OFFLINE=1` forbids downloads.

  Raises:
    CheckpointError: a malformed or unknown name, no network, or
      `huggingface_hub` is not installed.
  """
  match = _NAME.fullmatch(where)
  if match is None:
    raise CheckpointError(
      f'{where}: not a name on the hub; write hf-hub:timm/NAME'
    )
  repository, revision = match.groups()
  owner, _, name = repository.partition('/')
  if owner == 'timm':
    try:
      # New weights of a known architecture bring their own preprocessing.
      get_variant(name.partition('.')[0])
    except LambdaVitError as error:
      raise CheckpointError(f'{where}: {error}') from None
  try:
    import huggingface_hub
  except ImportError:
    raise CheckpointError(
      f'{where}: needs the package huggingface_hub; install it (pip install '
      "'lambda_vit_jax[hub]'), or download the folder and give its path"
    ) from None
  try:
    paths = [
      huggingface_hub.hf_hub_download(repository, file, revision=revision)
      for file in ('config.json', 'model.safetensors')
    ]
  except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
    raise CheckpointError(f'{where}: {_explain(error)}') from error
  if owner != 'timm':
    for file in _OPTIONAL:
      _fetch_if_there(huggingface_hub, repository, file, revision)
  return epath.Path(paths[-1]).parent


def _fetch_if_there(
  library: Any, repository: str, file: str, revision: str | None
) -> None:
  """Fetches a file that not every repository has."""
  try:
    library.hf_hub_download(repository, file, revision=revision)
  except (library.errors.HfHubHTTPError, OSError, ValueError) as error:
    # Not there, or not in the cache without network; without any other reason
    # the files before it would have failed.
    if 'EntryNotFound' not in type(error).__name__:
      raise CheckpointError(
        f'hf-hub:{repository}: {_explain(error)}'
      ) from error


def check_repository(repository: str) -> str:
  """Returns `OWNER/NAME`.

  Raises:
    CheckpointError: of another form.
  """
  if not _REPOSITORY.fullmatch(repository):
    raise CheckpointError(
      f'{repository}: not a repository of the hub; write OWNER/NAME'
    )
  return repository


def upload(folder: epath.Path, repository: str) -> str:
  """Uploads a folder as a model, made if it is new; returns its page.

  Raises:
    CheckpointError: no network, no login, no right to write there, or
      `huggingface_hub` is not installed.
  """
  check_repository(repository)
  try:
    import huggingface_hub
  except ImportError:
    raise CheckpointError(
      f'{repository}: needs the package huggingface_hub; install it (pip '
      "install 'lambda_vit_jax[hub]')"
    ) from None
  try:
    api = huggingface_hub.HfApi()
    api.create_repo(repository, repo_type='model', exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=str(folder))
  except Exception as error:
    # The library and its transport raise a dozen types.
    reason = ' '.join(str(error).split())[:100]
    raise CheckpointError(
      f'{repository}: not uploaded ({type(error).__name__}: {reason}); connect '
      'to the network and log in with `hf auth login`'
    ) from error
  return f'https://huggingface.co/{repository}'


def _explain(error: Exception) -> str:
  kind = type(error).__name__
  if 'RepositoryNotFound' in kind or 'GatedRepo' in kind:
    return 'the hub has no such public model; check the name'
  if 'EntryNotFound' in kind and 'Local' not in kind:
    return 'the model has no config.json and model.safetensors'
  return (
    f'not in the local cache, and the hub cannot be reached ({kind}); connect '
    'to the network once, or download the folder and give its path'
  )
