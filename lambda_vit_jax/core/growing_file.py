"""A file that grows by pieces, also where nothing can be appended."""

import time

from etils import epath

from lambda_vit_jax.core import files

# Object storage takes about one new version of an object per second.
_EVERY_SECONDS = 5.0


class GrowingFile:
  """Appends on a file system; on object storage it writes the file whole.

  Libraries take mode `a` there for `w`, which would keep the last piece alone.
  So all of the file is in memory, and written every few seconds: a process that
  is killed loses what came after, unless it called `save`.
  """

  def __init__(self, path: str | epath.Path):
    """Opens nothing yet. A file that exists is continued."""
    self._path = epath.Path(path)
    self._remote = files.is_remote(self._path)
    self._whole: bytearray | None = None
    self._saved = 0
    self._last = -_EVERY_SECONDS

  def write(self, data: bytes) -> None:
    """Adds bytes: on disk at once, or with the next `flush`."""
    if not self._remote:
      with self._path.open('ab') as file:
        file.write(data)
      return
    if self._whole is None:
      there = self._path.exists()
      self._whole = bytearray(self._path.read_bytes() if there else b'')
      self._saved = len(self._whole)
    self._whole += data

  def flush(self) -> None:
    """Writes what was added, unless that was done a moment ago."""
    if time.monotonic() - self._last >= _EVERY_SECONDS:
      self.save()

  def save(self) -> None:
    """Writes what was added."""
    if self._whole is not None and len(self._whole) > self._saved:
      self._path.write_bytes(bytes(self._whole))
      self._saved, self._last = len(self._whole), time.monotonic()

  close = save
