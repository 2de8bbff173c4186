"""`Model`: a frozen pair of a Flax module and its parameters."""

import dataclasses
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.arguments import (
  ArgumentError,
  check_arguments,
  check_types,
  unknown_keyword,
)
from lambda_vit_jax.core.errors import ModelError, warn_user
from lambda_vit_jax.core.images import check_values, model_images
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.core.typing import (
  Array,
  AttentionMode,
  Intermediates,
  Params,
)
from lambda_vit_jax.models.build import (
  for_backend,
  forward,
  init_params,
  make_module,
)
from lambda_vit_jax.models.macs import count_macs, count_parameters
from lambda_vit_jax.models.modes import (
  MODES,
  Layers,
  check_modes,
  modes_without,
  removed_layers,
)
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT


@dataclasses.dataclass(frozen=True, repr=False)
class Model(Shown):
  """A Vision Transformer and its parameters.

  Attributes:
    module: the Linen module; holds the attention modes and epsilons.
    params: plain nested dict of arrays.
    variant: name of its architecture in `models.variants`.
    preprocessing: how images become its input.
    class_names: one per class, or empty if unknown.
    kept_blocks: indices in the variant of the blocks that are left, ascending,
      if some were dropped (`drop_blocks`); otherwise empty.
  """

  module: ViT
  params: Params
  variant: str
  preprocessing: Preprocessing
  class_names: tuple[str, ...] = ()
  kept_blocks: tuple[int, ...] = ()

  def __post_init__(self):
    names, count = self.class_names, self.num_classes
    texts = not isinstance(names, str) and all(
      isinstance(name, str) for name in names
    )
    if not texts or len(names) not in (0, count):
      raise ModelError(
        f'class_names: {len(names)} of a model of {count} classes; give as many '
        'texts as there are classes, or none'
      )
    seen = set[str]()
    for name in names:
      if name in seen:
        raise ModelError(
          f'class_names: {name!r} stands for two classes; give each its own '
          'name'
        )
      seen.add(name)

  @property
  def depth(self) -> int:
    """Number of blocks."""
    return self.module.depth

  @property
  def block_origins(self) -> tuple[int, ...]:
    """Per block its index in the variant, before blocks were dropped."""
    return self.kept_blocks or tuple(range(self.depth))

  @property
  def num_classes(self) -> int:
    """Classes of the head, 0 for none."""
    return self.module.num_classes

  @property
  def attention_modes(self) -> tuple[AttentionMode, ...]:
    """One mode per block."""
    return self.module.attention_modes

  @property
  def removed_layers(self) -> tuple[int, ...]:
    """Blocks without attention parameters."""
    return removed_layers(self.attention_modes)

  @property
  def mlp_dims(self) -> tuple[int, ...]:
    """Hidden width of the MLP of each block, 0 where there is none."""
    return self.module.hidden_dims

  @property
  def num_parameters(self) -> int:
    """Numbers in `params`."""
    return count_parameters(self.params)

  def macs(self, executed: bool = False) -> int:
    """Multiply-accumulates per image (docs/method.md#what-is-counted).

    Args:
      executed: count what really runs (only the tokens that the readout reads,
        from the last block that mixes tokens on) instead of the published
        convention.
    """
    return count_macs(self.module, executed)

  def table(self) -> Table:
    """A summary: sizes, cost, and which blocks are in which mode."""
    module = self.module
    classes = str(self.num_classes) if self.num_classes else 'none: features'
    if module.segmentation is not None:
      classes += f' per pixel ({module.segmentation.kind})'
    rows = [
      ('image size', ' × '.join(map(str, module.image_size))),
      ('classes', classes),
      ('blocks', str(self.depth)),
    ]
    for mode in MODES:
      blocks = [i for i, m in enumerate(self.attention_modes) if m == mode]
      if blocks:
        rows.append((f'{mode} attention', f'blocks {_ranges(blocks)}'))
    if self.kept_blocks:
      kept = f'blocks {_ranges(self.kept_blocks)}'
      rows.append(('kept of the variant', kept))
    for name, numbers in (
      ('MLP widths', module.mlp_dims),
      ('merged tokens', module.merge and module.merge_counts),
    ):
      if numbers:
        text = ' '.join(map(str, numbers))
        # Of the deepest networks the first ones.
        text = textwrap.shorten(text, 70, placeholder=' …')
        rows.append((name, text))
    if module.quantization != 'none':
      rows.append(('int8 arithmetic', module.quantization))
    rows += [
      ('parameters', f'{self.num_parameters:,}'),
      ('MACs per image', _millions(self.macs())),
      ('of these executed', _millions(self.macs(executed=True))),
    ]
    return Table(f'Model {self.variant}', ('', ''), rows)

  def summary(self) -> str:
    """The text of `table`: sizes, cost and the mode of every block."""
    return str(self.table())

  def predict(self, images: Any, topk: int = 5) -> list[dict[str, float]]:
    """The most probable classes of images, see `lv.predict`.

    Args:
      images: paths, Pillow images or arrays that are not normalised.
      topk: how many classes.

    Returns:
      Per image `{class name: probability}`, best first.
    """
    # Reading images is above this room: as users, by the public name.
    package = importlib.import_module(__name__.partition('.')[0])
    found: list[dict[str, float]] = package.predict(self, images, topk)
    return found

  def replace(self, **changes: Any) -> 'Model':
    """A new Model with fields changed, `replace(params=...)`."""
    return dataclasses.replace(self, **changes)

  def __call__(self, images: Array) -> Array:
    """NHWC images to logits `[batch, num_classes]` float32.

    Args:
      images: `[batch, height, width, channels]` float32, normalised; or uint8,
        which is normalised here. `lv.preprocess` makes them from files.

    Raises:
      DataError: images of another shape, or NaN in an array of NumPy; arrays on
        a device are not looked at.
    """
    module = for_backend(self.module)
    return forward(module, self.params, self._input(images))[0]

  def _input(self, images: Any) -> Array:
    """The images as the module takes them; see `core.images.model_images`."""
    shape = (*self.module.image_size, self.module.in_chans)
    found = model_images(images, self.preprocessing, shape, 'the batch')
    # Those on a device are not waited for.
    if isinstance(found, np.ndarray):
      warning = check_values(found, self.preprocessing, 'the batch')
      if warning:
        warn_user(warning)
    return jnp.asarray(found)

  def apply(
    self,
    images: Array,
    attention_modes: Sequence[str] | None = None,
    dilution_factor: Array | None = None,
  ) -> tuple[Array, Intermediates]:
    """Logits and the named intermediates of every block.

    Args:
      images: as in a call of the model.
      attention_modes: one per block, this model's by default; a block without
        attention parameters cannot get a mode that needs them.
      dilution_factor: λ `[depth]`, or one for all, for blocks in mode `diluted`.

    Returns:
      Logits `[batch, num_classes]` float32 (pooled features where the model
      has no head), and a dict: `embedding`; `block00` and so on, each a dict
      of what the block has of `input`, `norm1`, `attention`,
      `after_attention`, `mlp` and `output`, `[batch, tokens, embed_dim]`; and
      `features`, after the final norm.

    Raises:
      DataError: images of another shape.
      ModelError: modes whose parameters are not in the tree, `diluted` without
        a factor, or a factor of another shape or without such a block.
    """
    module = self.module
    if attention_modes is not None:
      modes = check_modes(attention_modes, self.depth)
      for index, mode in enumerate(modes):
        if mode == 'linear' != self.attention_modes[index]:
          raise ModelError(
            f'block {index} has no affine map; linearize it first'
          )
      for index in self.removed_layers:
        if modes[index] not in (self.attention_modes[index], 'skip'):
          raise ModelError(
            f'block {index} is {self.attention_modes[index]!r} and has no '
            f'parameters for mode {modes[index]!r}'
          )
      module = module.clone(attention_modes=modes)
    if 'diluted' in module.attention_modes and dilution_factor is None:
      raise ModelError('blocks in mode `diluted` need a dilution_factor')
    if dilution_factor is not None:
      dilution_factor = _factors(dilution_factor, module)
    return forward(
      module, self.params, self._input(images), dilution_factor, capture=True
    )


def _factors(factor: Any, module: ViT) -> Array:
  """λ of every block, `[depth]` float32."""
  if 'diluted' not in module.attention_modes:
    raise ModelError(
      'dilution_factor: no block is in mode `diluted`; give attention_modes'
    )
  try:
    found = jnp.asarray(factor, jnp.float32)
  except (TypeError, ValueError):
    found = jnp.zeros((0, 0))
  if found.shape not in ((), (module.depth,)):
    raise ModelError(
      f'dilution_factor={factor!r}: give one number, or {module.depth}, one per '
      'block'
    )
  return jnp.broadcast_to(found, (module.depth,))


def _millions(number: int) -> str:
  """A number of operations as `5.977 M` or `4.6 G`."""
  if number >= 1e9:
    return f'{number / 1e9:.4g} G'
  return f'{number / 1e6:.4g} M'


def _ranges(indices: Sequence[int]) -> str:
  """Ascending indices as text: `0-2, 5`."""
  runs = []
  # Within a run, an index and its place differ by the same number.
  for _, group in itertools.groupby(enumerate(indices), lambda p: p[1] - p[0]):
    run = [index for _, index in group]
    runs.append(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}')
  return ', '.join(runs)


def _check_options(options: dict[str, Any]) -> None:
  """Checks the options of `create_model`; makes tuples of lists, in place."""
  # timm's keyword for weights from its hub.
  if options.pop('pretrained', False):
    raise ArgumentError(
      'create_model() starts from random numbers; load_pretrained(NAME) loads '
      'trained ones'
    )
  own = inspect.signature(create_model).parameters
  fields = ViT.__dataclass_fields__.keys() - {'parent', 'name'}
  known = (*list(own)[:-1], 'drop_path_rate', *sorted(fields - own.keys()))
  for keyword in options:
    if keyword not in known:
      raise unknown_keyword('create_model', keyword, known)
  for annotated in (make_module, ViT):
    check_types(annotated, options, 'create_model')
  # A module is hashed.
  options |= {k: tuple(v) for k, v in options.items() if isinstance(v, list)}


@check_arguments
def create_model(
  variant: str,
  num_classes: int | None = None,
  image_size: int | Sequence[int] | None = None,
  removed_layers: Layers = (),
  seed: int = 0,
  **options: Any,
) -> Model:
  """A freshly initialised model of a known variant.

  Args:
    variant: a name that `lambda-vit models` lists.
    num_classes: 0 for no head; the variant's by default.
    image_size: pixels, divisible by the patch size.
    removed_layers: blocks in mode `identity`: indices, or a `Selection`.
    seed: of the initial parameters.
    **options: fields of the module (`models.vit.ViT`): `attention_modes`,
      `dtype`, `drop_path_rates`, `pooling` and so on.

  Returns:
    A `Model` with float32 parameters.

  Raises:
    ModelError: unknown variant, sizes or layers that do not fit.
    UsageError: a keyword that is no option; the message names the nearest.
  """
  _check_options(options)
  spec = get_variant(variant)
  modes = options.pop('attention_modes', ('full',) * spec.depth)
  module = make_module(
    spec,
    num_classes=num_classes,
    image_size=image_size,
    attention_modes=modes_without(removed_layers, modes),
    **options,
  )
  return Model(
    module=module,
    params=init_params(module, int(seed)),
    variant=spec.name,
    preprocessing=_in_channels(
      spec.preprocessing(module.image_size), module.in_chans
    ),
  )


def _in_channels(found: Preprocessing, channels: int) -> Preprocessing:
  """For images of another number of channels, the mean of those there are."""
  if found.channels == channels:
    return found
  mean, std = (
    (sum(each) / len(each),) * channels for each in (found.mean, found.std)
  )
  return dataclasses.replace(found, mean=mean, std=std)
