"""What PyTorch's tensors and loaders are to us, without PyTorch."""

import dataclasses

import ml_dtypes
import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Has the methods of `torch.Tensor` that matter, and refuses as it does."""

  values: np.ndarray
  requires_grad: bool = False
  device: str = 'cpu'

  @property
  def dtype(self):
    return f'torch.{self.values.dtype.name}'

  @property
  def shape(self):
    return self.values.shape

  @property
  def ndim(self):
    return self.values.ndim

  def __len__(self):
    return len(self.values)

  def __getitem__(self, index):
    return dataclasses.replace(self, values=self.values[index])

  def detach(self):
    return dataclasses.replace(self, requires_grad=False)

  def cpu(self):
    return dataclasses.replace(self, device='cpu')

  def float(self):
    return dataclasses.replace(self, values=self.values.astype(np.float32))

  def numpy(self):
    if self.requires_grad:
      raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
    if self.device != 'cpu':
      raise TypeError("can't convert cuda:0 device type tensor to numpy.")
    if self.values.dtype == ml_dtypes.bfloat16:
      raise TypeError('Got unsupported ScalarType BFloat16')
    return self.values

  def __array__(self, dtype=None, copy=None):
    return np.asarray(self.numpy(), dtype)


class DataLoader:
  """Yields lists of an image and a label tensor, channels first."""

  def __init__(self, images, labels, batch_size=5, **options):
    self.images, self.labels = images, labels
    self.batch_size = batch_size
    self.options = options

  def __len__(self):
    return -(-len(self.images) // self.batch_size)

  def __iter__(self):
    for start in range(0, len(self.images), self.batch_size):
      part = slice(start, start + self.batch_size)
      images = self.images[part].transpose(0, 3, 1, 2)
      yield [Tensor(images, **self.options), Tensor(self.labels[part])]
