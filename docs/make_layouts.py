"""Write docs/layouts.md: every layout of weights, and what loading it does.

  python docs/make_layouts.py

A tiny file of each is made and loaded; a test fails when the page is not
current.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'layouts.md'

HEAD = """
# Whose weights are read

`lv.load_pretrained` and `--config.init` recognise a file by the names of its
arrays. Every array has to be used: one that is missing, unexpected or of
another shape is an error with its name. What a program stores beside the
network (a text tower, a mask token, a pooler that nothing here uses) is left
out by name, in one line.

- A prefix that all arrays share is dropped, and that is said.
- Of several sets of weights in a file you choose one: `run.pth#model_ema`.
  The name is the place in the file, parts joined by dots; a prefix of names
  counts, too (`dino.pth#teacher.backbone`).
- `config.json` and `preprocessor_config.json` of transformers, timm's
  `config.json` and `open_clip_config.json` give sizes, epsilon, activation and
  the preparation of images. Without them the variant is found by the shapes,
  or given with `variant`.
- transformers resizes many images to a square; here the shorter side is resized
  and the rest is cropped.
- A `.pth` may hold arguments, numpy scalars and settings beside its tensors:
  they are left out without running any of their code. Another type is named,
  and [some lines](pytorch.md#convert-a-pth-file) convert such a file.

The table is made by `docs/make_layouts.py`, which writes a tiny file of each
and loads it.

| file | an array of it | what happens |
|---|---|---|
"""


def make_page() -> str:
  """Return the text of the page."""
  from tests.support.layout_files import CASES, outcome

  rows = []
  for case in CASES:
    title = case.title + (f' (`#{case.chosen}`)' if case.chosen else '')
    rows.append(
      f'| {title}: `{case.name}` | `{example(case.content())}` | '
      f'{outcome(case).replace("|", "/")} |'
    )
  return HEAD.lstrip() + '\n'.join(rows) + '\n'


def example(content: object) -> str:
  """The name of one array, that of a block where there is one."""
  names = list(names_in(content))
  marks = ('1.attn', '1.norm1', 'norm1', 'layer_norm1', 'ln_1', 'LayerNorm_0')
  for mark in (*marks, 'layernorm_before', ''):
    for name in names:
      if mark in name:
        return name
  return ''


def names_in(content: object) -> list[str]:
  """Names of all arrays in a tree, in order."""
  if not isinstance(content, dict):
    return []
  names: list[str] = []
  for key, value in content.items():
    if hasattr(value, 'shape'):
      names.append(str(key))
    else:
      names += names_in(value)
  return names


def main() -> None:
  """Write the page."""
  PAGE.write_text(make_page())


if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))
  main()
