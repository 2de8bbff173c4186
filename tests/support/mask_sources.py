"""Images with masks, in memory."""

import io

import numpy as np
from PIL import Image


def png(array, mode=None):
  file = io.BytesIO()
  Image.fromarray(np.asarray(array, np.uint8), mode).save(file, 'PNG')
  return file.getvalue()


def blocks(rng, height, width, cell=8):
  """Classes in squares, and an image whose levels say them: 60·class + 20."""
  coarse = rng.integers(0, 4, (-(-height // cell), -(-width // cell)))
  labels = np.kron(coarse, np.ones((cell, cell), int))[:height, :width]
  return (60 * labels + 20).astype(np.uint8), labels.astype(np.uint8)


class Source:
  """Records in memory."""

  def __init__(self, records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def __getitem__(self, index):
    image, mask = self.records[index]
    return {'image': image, 'label': mask, 'index': index}

  def describe(self, index):
    return f'record {index}'
