"""Object storage in memory, with the rules of Google's and of gcsfs.

Production code is unchanged: `gs://` paths of etils.epath go through fsspec,
which finds `FileSystem` here instead of gcsfs; tensorstore, which reads and
writes the arrays of a checkpoint, speaks HTTP with `_Server` on loopback.

The rules, as of gcsfs and of the storage behind it:

- An object appears whole, when its file is closed; it cannot be appended to:
  mode `a` is taken for `w`.
- There are no folders, only names with slashes: an empty one does not exist,
  and renaming one copies object by object.
"""

import base64
import contextlib
import hashlib
import http.server
import io
import json
import re
import sys
import threading
import types
import urllib.parse

import fsspec
from fsspec.spec import AbstractFileSystem


class Store:
  """Objects by `BUCKET/NAME`, each with the number of its version."""

  def __init__(self):
    self.lock = threading.RLock()
    self.objects = {}
    self.generation = 1
    # Called with the operation and the name, before it is done and after.
    self.before = self.after = lambda operation, name: None

  def put(self, name, data):
    with self.lock:
      self.generation += 1
      self.objects[name] = (bytes(data), self.generation)
      return self.generation

  def remove(self, name):
    with self.lock:
      del self.objects[name]

  def copy(self, bucket, other):
    """Makes another bucket the same as one, at one moment."""
    with self.lock:
      for name in self.names(f'{other}/'):
        self.remove(name)
      for name in self.names(f'{bucket}/'):
        copied = other + name.removeprefix(bucket)
        self.objects[copied] = self.objects[name]

  def names(self, prefix):
    with self.lock:
      return sorted(n for n in self.objects if n.startswith(prefix))


STORE = Store()


class _Upload(io.BytesIO):
  """A file being written, which is an object once it is closed."""

  def __init__(self, name):
    super().__init__()
    self._name = name

  def close(self):
    if not self.closed:
      STORE.before('write', self._name)
      STORE.put(self._name, self.getvalue())
      STORE.after('write', self._name)
    super().close()


class FileSystem(AbstractFileSystem):
  protocol = ('gs', 'gcs')
  cachable = False

  def _open(self, path, mode='rb', **options):
    del options
    name = self._strip_protocol(path)
    if 'r' not in mode:
      return _Upload(name)
    if name not in STORE.objects:
      raise FileNotFoundError(path)
    return io.BytesIO(STORE.objects[name][0])

  def info(self, path, **options):
    del options
    name = self._strip_protocol(path).rstrip('/')
    if name in STORE.objects:
      size = len(STORE.objects[name][0])
      return {'name': name, 'size': size, 'type': 'file'}
    if STORE.names(f'{name}/') or '/' not in name:
      return {'name': name, 'size': 0, 'type': 'directory'}
    raise FileNotFoundError(path)

  def ls(self, path, detail=True, **options):
    del options
    name = self._strip_protocol(path).rstrip('/')
    if name in STORE.objects:
      found = [name]
    else:
      inside = f'{name}/'
      heads = (n.removeprefix(inside) for n in STORE.names(inside))
      found = sorted({inside + h.partition('/')[0] for h in heads})
      if not found:
        raise FileNotFoundError(path)
    return [self.info(n) for n in found] if detail else found

  def mkdir(self, path, create_parents=True, **options):
    """There are no folders."""

  makedirs = mkdir

  def rmdir(self, path):
    """There are no folders."""

  def _rm(self, path):
    STORE.before('remove', path)
    with STORE.lock:
      if STORE.objects.pop(self._strip_protocol(path), None) is None:
        raise FileNotFoundError(path)

  def rm(self, path, recursive=False, maxdepth=None):
    for found in self.expand_path(path, recursive=recursive):
      if self._strip_protocol(found) in STORE.objects:
        self._rm(found)

  def cp_file(self, path1, path2, **options):
    del options
    name = self._strip_protocol(path1)
    if name in STORE.objects:
      STORE.before('copy', name)
      STORE.put(self._strip_protocol(path2), STORE.objects[name][0])


class _Server(http.server.BaseHTTPRequestHandler):
  """As much of the JSON API as tensorstore uses."""

  protocol_version = 'HTTP/1.1'

  def log_message(self, *words):
    """Prints nothing."""

  def _answer(self, code, data=b'', **headers):
    self.send_response(code)
    for key, value in headers.items():
      self.send_header(key.replace('_', '-'), str(value))
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def _asked(self):
    """The object's name and the options of the address."""
    parts = urllib.parse.urlsplit(self.path)
    options = dict(urllib.parse.parse_qsl(parts.query))
    found = re.search(r'/b/([^/]+)/o(?:/(.+))?$', parts.path)
    name = urllib.parse.unquote(found[2] or options.get('name', ''))
    return f'{found[1]}/{name}', options

  def _refused(self, name, options):
    """Whether a condition on the version does not hold."""
    wanted = options.get('ifGenerationMatch')
    _, generation = STORE.objects.get(name, (b'', 0))
    return wanted is not None and int(wanted) != generation

  def do_GET(self):
    name, options = self._asked()
    if options.get('alt') != 'media':
      inside = f'{name}{options.get("prefix", "")}'
      bucket = name.partition('/')[0] + '/'
      names = [n.removeprefix(bucket) for n in STORE.names(inside)]
      items = [{'name': n} for n in names]
      self._answer(200, json.dumps({'items': items}).encode())
      return
    with STORE.lock:
      data, generation = STORE.objects.get(name, (None, 0))
    if data is None:
      self._answer(404)
      return
    if str(generation) == options.get('ifGenerationNotMatch'):
      self._answer(304)
      return
    if self._refused(name, options):
      self._answer(412)
      return
    headers = {'x_goog_generation': generation}
    found = re.match(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
    if found is None:
      self._answer(200, data, **headers)
      return
    start, end = int(found[1]), int(found[2] or len(data) - 1)
    part = data[start : end + 1]
    headers['Content_Range'] = f'bytes {start}-{end}/{len(data)}'
    self._answer(206, part, **headers)

  def do_POST(self):
    name, options = self._asked()
    data = self.rfile.read(int(self.headers['Content-Length']))
    with STORE.lock:
      if self._refused(name, options):
        self._answer(412)
        return
      generation = STORE.put(name, data)
    self._answer(200, json.dumps(_metadata(name, generation, data)).encode())

  def do_DELETE(self):
    name, options = self._asked()
    with STORE.lock:
      if self._refused(name, options):
        self._answer(412)
        return
      found = STORE.objects.pop(name, None)
    self._answer(404 if found is None else 204)


def _metadata(name, generation, data):
  bucket, _, name = name.partition('/')
  now = '2026-01-01T00:00:00.000Z'
  return {
    'bucket': bucket,
    'name': name,
    'id': f'{bucket}/{name}/{generation}',
    'generation': str(generation),
    'metageneration': '1',
    'size': str(len(data)),
    'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode(),
    'timeCreated': now,
    'updated': now,
    'timeStorageClassUpdated': now,
    'storageClass': 'STANDARD',
  }


@contextlib.contextmanager
def serve(monkeypatch):
  """An empty store behind every `gs://` path while open; yields it."""
  STORE.__init__()
  fsspec.register_implementation('gcs', FileSystem, clobber=True)
  fsspec.register_implementation('gs', FileSystem, clobber=True)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Server)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  address = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setenv('TENSORSTORE_GCS_HTTP_URL', address)
  monkeypatch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'none')
  monkeypatch.setenv('EPATH_USE_TF', 'false')
  # Orbax asks Google's package, which gcsfs installs, for a bucket's kind.
  client = types.SimpleNamespace(get_bucket=lambda name: object())
  package = types.SimpleNamespace(Client=lambda: client)
  monkeypatch.setitem(sys.modules, 'google.cloud.storage', package)
  try:
    yield STORE
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
