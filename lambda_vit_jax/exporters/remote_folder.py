"""Put a folder in the place of another where folders cannot be renamed."""

from collections.abc import Iterator

from etils import epath

LAST = 'model.json'
"""Without it, the files of a folder are no export."""


def unfinished(target: epath.Path) -> epath.Path:
  """The file that is there while `target` holds some files of an export."""
  return target.parent / f'.{target.name}.unfinished'


def replace(target: epath.Path, folder: epath.Path) -> None:
  """Copies an export to `target`, in place of the one that is there.

  Object storage renames a folder file by file: if that is cut short, there may
  be a `model.json` without its weights. So the old one goes first, and the new
  one comes last.
  """
  marker = unfinished(target)
  marker.write_text('')
  (target / LAST).unlink(missing_ok=True)
  target.rmtree(missing_ok=True)
  names = list(_names(folder))
  for name in sorted(names, key=lambda name: name == LAST):
    (folder / name).copy(target / name)
  marker.unlink()


def _names(folder: epath.Path, prefix: str = '') -> Iterator[str]:
  """Every file, relative to the outermost folder."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _names(path, f'{prefix}{path.name}/')
    else:
      yield prefix + path.name
