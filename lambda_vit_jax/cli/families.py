"""Families of variants, and the programs that each was compared with."""

import re
from typing import NamedTuple


class Family(NamedTuple):
  """Variants of one kind.

  Attributes:
    name: as a heading.
    pattern: what their names match.
    references: programs whose own modules give the same logits and blocks from
      the same file, by tests/parity.
  """

  name: str
  pattern: str
  references: tuple[str, ...]


_FAMILIES = (
  Family('DINOv3', r'.*dinov3', ('timm', 'transformers')),
  Family('DINOv2', r'.*dinov2', ('timm', 'transformers')),
  Family('SigLIP', r'.*siglip', ('timm', 'transformers')),
  Family('CLIP', r'.*clip', ('timm', 'transformers', 'OpenCLIP')),
  Family('EVA-02', r'eva02', ('timm',)),
  Family('BEiT', r'beit', ('timm',)),
  Family('DeiT III', r'deit3', ('timm',)),
  Family('DeiT', r'deit', ('timm', 'transformers')),
  Family('ours, small', r'vit_(nano|mini)', ()),
  Family('ViT', r'', ('timm', 'transformers', 'torchvision')),
)


def family_of(name: str) -> Family:
  """The family of a variant: the first whose pattern its name begins with."""
  return next(x for x in _FAMILIES if re.match(x.pattern, name))


def heading(family: Family) -> str:
  """`DINOv2 = timm, transformers`: a family, and what it was compared with."""
  checked = ', '.join(family.references)
  return f'{family.name} = {checked}' if checked else family.name
