"""Text of unknown origin, made safe for one line of a terminal."""

import unicodedata

LONGEST_LINE = 1000
"""Characters after which a line is cut."""


def printable(text: object, longest: int = LONGEST_LINE) -> str:
  r"""Returns `text` as one line that only shows characters.

  Names and values come from files: a key may hold `\x1b[2J`, which clears a
  terminal, or a newline, which fakes a second message. Everything that Unicode
  calls a control, format, surrogate or unassigned character is written as its
  escape; a long line is cut.
  """
  line = str(text)
  cut = len(line) > longest
  if cut:
    line = line[:longest]
  if not line.isprintable():
    line = ''.join(map(_shown, line))
  # Escapes are longer than what they stand for.
  if cut or len(line) > longest:
    line = line[: longest - 1] + '…'
  return line


def _shown(character: str) -> str:
  # Spaces other than the usual one are part of names in some scripts.
  if character.isprintable() or unicodedata.category(character) == 'Zs':
    return character
  return character.encode('unicode_escape', 'surrogatepass').decode()
