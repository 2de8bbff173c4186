"""Parse README.md and the pages of docs/: code blocks, links and commands."""

import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from tests.support import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (
  ROOT / 'README.md',
  ROOT / 'CONTRIBUTING.md',
  *sorted((ROOT / 'docs').rglob('*.md')),
)
_FENCE = re.compile(r'^```(\w+)\n(.*?)^```', re.MULTILINE | re.DOTALL)
_SHELLS = ('bash', 'sh', 'console', 'shell')


@dataclasses.dataclass(frozen=True)
class Command:
  """A shell command split into words; `where` is for messages and test names."""

  where: str
  words: tuple[str, ...]

  def __str__(self) -> str:
    return f'{self.where}: {" ".join(self.words)[:60]}'


def name(path: pathlib.Path) -> str:
  return path.relative_to(ROOT).as_posix()


def fences(path: pathlib.Path, *languages: str) -> list[str]:
  """Bodies of a page's code blocks in the given languages."""
  found = _FENCE.findall(path.read_text())
  return [body for language, body in found if language in languages]


def split(where: str, text: str) -> list[Command]:
  """Commands in shell lines, without leading variable assignments."""
  commands = []
  for line in text.replace('\\\n', ' ').splitlines():
    words = shlex.split(line.removeprefix('$ '), comments=True)
    while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
      words.pop(0)
    if words:
      commands.append(Command(where, tuple(words)))
      # A command given to another program counts as well.
      if 'lambda-vit' in words[1:]:
        start = words.index('lambda-vit')
        commands.append(Command(where, tuple(words[start:])))
      for word in words[1:]:
        inner = re.search(r'(lambda-vit|python3? -m lambda_vit_jax) .*', word)
        if inner:
          commands += split(where, inner[0])
  return commands


def commands() -> list[Command]:
  """All commands on the pages, those of `--help` in the reference included."""
  found = []
  for path in PAGES:
    for body in fences(path, *_SHELLS):
      found += split(name(path), body)
    for body in fences(path, 'text'):
      text = body.replace('\\\n', ' ')
      for line in re.findall(r'^  (lambda-vit .+)$', text, re.MULTILINE):
        found += split(name(path), line)
  return found


def prose(path: pathlib.Path) -> str:
  """A page without its code blocks."""
  return re.sub(
    r'^```.*?^```', '', path.read_text(), flags=re.MULTILINE | re.DOTALL
  )


def anchors(path: pathlib.Path) -> set[str]:
  """The anchors of a page's headings, as GitHub names them."""
  titles = re.findall(r'^#+ (.+)$', prose(path), re.MULTILINE)
  return {
    re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles
  }


def run(words: Sequence[str]) -> str:
  """What `lambda-vit` with these words prints.

  On one device: eight virtual ones that share two cores wait for each other too
  long.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'lambda_vit_jax', *words],
    env=os.environ | {'XLA_FLAGS': xla_flags.flags()},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, (words, done.stderr)
  return done.stdout
