"""Every key a config has, with its default and what it means."""

from typing import Any

import ml_collections
from ml_collections import config_dict


def free(default: Any = None) -> config_dict.FieldReference:
  """A field that flags may set to any type; the package validates it."""
  return config_dict.FieldReference(default, field_type=object)


_SWITCH = dict.fromkeys(('', '1', 'true', 'yes'), True) | dict.fromkeys(
  ('0', 'false', 'no'), False
)


def parse_argument(argument: str | None, **defaults: Any) -> dict[str, Any]:
  """Reads `file.py:runlocal,variant=small` into a dict.

  A bare name is True; a value takes the type of its default.

  Raises:
    ValueError: a name that is not among `defaults`, or a value of another type.
  """
  values = dict(defaults)
  for part in filter(None, (argument or '').split(',')):
    name, _, text = part.partition('=')
    if name not in defaults:
      known = ', '.join(sorted(defaults)) or 'none'
      raise ValueError(f'config argument {name!r} is not known; known: {known}')
    kind = type(defaults[name])
    try:
      values[name] = _SWITCH[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
      wanted = (
        'true or false' if kind is bool else f'a value as {defaults[name]}'
      )
      raise ValueError(
        f'config argument {name}={text!r}: give {wanted}'
      ) from None
  return values


def _training(learning_rate: float) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      # Peak of the schedule; for a batch of 512 images if scale_by_batch.
      'learning_rate': learning_rate,
      # Multiply the learning rate by batch_size / 512.
      'scale_by_batch': False,
      # Learning rate of the last step.
      'final_learning_rate': 1e-5,
      # cosine or poly: how the rate falls from its peak.
      'schedule': 'cosine',
      # Schedule poly: exponent of the share of steps that are left.
      'poly_power': 1.0,
      # Steps, or epochs as '5ep'.
      'warmup_steps': free(0),
      # AdamW's weight decay; only weight matrices decay.
      'weight_decay': 0.05,
      # AdamW's decay rate of the first moment.
      'b1': 0.9,
      # AdamW's decay rate of the second moment.
      'b2': 0.999,
      # Clip the gradient to this global norm; 0 for no clipping.
      'clip_norm': 1.0,
      # Learning-rate factor per layer from the head down; 1 for none.
      'layer_decay': 1.0,
      # Regular expression on parameter paths that do not train.
      'frozen': '',
      # Steps whose gradients are averaged before an update.
      'accumulate_steps': 1,
      # Label smoothing: share of a label that is spread over all classes.
      'label_smoothing': 0.1,
      # Mixup: parameter of the beta distribution; 0 for none.
      'mixup': 0.0,
      # The same for CutMix; 0 for none.
      'cutmix': 0.0,
      # Images that share one draw of MixUp or CutMix and are mixed with each
      # other, a part of the batch; all of it when empty. Where it divides the
      # images of a device, none are sent to other devices to be mixed.
      'mix_size': free(),
      # Largest stochastic-depth rate; the variant decides how it grows with
      # depth.
      'drop_path_rate': 0.0,
      # Decay of the exponential moving average of the parameters; 0 for none.
      'ema': 0.0,
      # none, soft, hard or feature: distillation from the dense model that
      # dilution starts from.
      'distill': 'none',
      # Weight of the distillation loss; the rest is for the labels.
      'distill_weight': 0.5,
      # Divides both models' logits in soft distillation.
      'distill_temperature': 1.0,
    }
  )


def base() -> ml_collections.ConfigDict:
  """All keys with defaults that suit a small image set."""
  config = ml_collections.ConfigDict()
  # Seeds initial parameters, data order, augmentation and the bootstrap.
  config.seed = 0
  # Images per optimisation step, over all devices and processes.
  config.batch_size = 64
  # Where dense weights come from: a file, folder, hf-hub:NAME, builtin:NAME,
  # workdir or export; empty for none (from scratch).
  config.init = ''
  # `classify`: a class per image. `segment`: one per pixel, see `segment`.
  config.task = 'classify'
  config.data = data = ml_collections.ConfigDict()
  # digits, image_folder:DIR, idx_folder:DIR or tfds:NAME; with task=segment
  # digits (on textures), segmentation_folder:DIR or tfds:NAME.
  data.source = 'digits'
  # Use only this many images of the training split, the same share of each
  # class; all of them when empty.
  data.train_images = free()
  # Training images that are held out; selection reads them.
  data.holdout_images = 256
  # Skip images that cannot be decoded instead of stopping at the first.
  data.skip_undecodable = False
  # Worker processes of the input pipeline; 0 reads in threads.
  data.workers = 0
  # Folder for prepared digits and cached labels; lambda_vit_jax/ in
  # $XDG_CACHE_HOME or ~/.cache when empty.
  data.cache_dir = ''
  # Repeated augmentation: augmented versions of each image in a batch.
  # An epoch keeps its number of steps, so it sees 1/repeats of the images.
  data.repeats = 1
  # See lambda_vit_jax.data.augment.Augment.
  data.augment = augment = ml_collections.ConfigDict({'kind': 'none'})
  for name in (
    'crop_area',
    'crop_aspect',
    'rotation',
    'shift',
    'scale',
    'aspect',
    'shear',
    'flip',
    'randaugment',
    'erasing',
  ):
    # The value of `kind` when empty.
    augment[name] = free()

  config.model = model = ml_collections.ConfigDict()
  # A name of `lambda-vit models`.
  model.variant = 'vit_mini_patch2_8'
  # Pixels; the variant's own when empty.
  model.image_size = free()
  # Share of the resized image that evaluation keeps; the variant's own when
  # empty (timm's; the paper's recipe has 0.875).
  model.crop_ratio = free()
  # float32 or bfloat16 arithmetic; parameters stay float32.
  model.dtype = 'float32'
  # Recompute activations in the backward pass: less memory, more time.
  model.remat = False
  # Tokens that each attention layer of the pruned model merges away (8), a list
  # with one number per block, constant:8 or decreasing:8; 0 for none.
  model.merge = free(0)
  # The first block that merges tokens.
  model.merge_start = 0

  config.segment = segment = ml_collections.ConfigDict()
  # linear (one affine map of each token) or upernet.
  segment.decoder = 'upernet'
  # The four blocks that upernet reads; the last of each quarter when empty.
  segment.blocks = ()
  # Width of upernet.
  segment.channels = 512
  # Dropout rate of the channels before the last layer.
  segment.dropout = 0.1
  # Number of pixel classes; the data set's own when empty.
  segment.num_classes = free()
  # The number in a mask that means no class.
  segment.ignore_index = 255
  # 0 in a mask means no class, and k + 1 means class k (ADE20k).
  segment.reduce_zero_label = False
  # Least and greatest random scale in training, of the image that just covers
  # the model's image size.
  segment.scale = (0.5, 2.0)
  # Crops in which one class covers more than this share are drawn again; 1 for
  # never.
  segment.most_of_one = 0.75
  # Probability of a left-right flip in training.
  segment.flip = 0.5
  # Strength of the distortion of brightness, contrast and colour; 0 for none.
  segment.photometric = 1.0
  # `whole` scales each test image to fit the model's image size, `slide` moves
  # a window of that size over the image scaled to cover it.
  segment.evaluation = 'whole'
  # Pixels between windows; two thirds of the window when empty.
  segment.stride = free()
  # Test images that the report shows beside their masks and predictions.
  segment.pictures = 3

  config.pretrain = _training(1e-3)
  # Steps, or epochs as '30ep'. 0 takes the init weights as they are.
  config.pretrain.steps = free(0)

  config.analyze = analyze = ml_collections.ConfigDict()
  # Images of the held-out slice; all of it when empty.
  analyze.num_images = free()

  config.select = select = ml_collections.ConfigDict()
  # transfer_entropy (or nose), loss_increase, output (the error at the output with
  # maps of linearize.inputs in place), cosine, affine, canonical, random, first,
  # last, given (select.layers), probe (short dilutions), exhaustive or
  # exhaustive:SCORE.
  select.criterion = 'transfer_entropy'
  # The output whose entropy is measured: logits or features.
  select.target = 'logits'
  # signed removes the layer with the least score, absolute the one whose score
  # has the least magnitude; for transfer_entropy and loss_increase.
  select.sign = 'signed'
  # What transfer_entropy and loss_increase try instead of an attention layer:
  # skip leaves it out, linear fits an affine map.
  select.trial = 'skip'
  # Exactly one of the next three is set; setting one by flag clears the others.

  # Attention layers to remove.
  select.num_layers = free(5)
  # The same, as a share of the blocks; rounded.
  select.removal_ratio = free()
  # The fewest layers that divide the multiply-accumulates by this.
  select.target_speedup = free()
  # The layers themselves, for criterion `given`.
  select.layers = ()
  # Images of the held-out slice; all of it when empty.
  select.num_images = free()
  # Memory for activations; what the device has when empty.
  select.memory_gib = free()
  # Criterion `probe`: steps of the first, shortest dilution runs.
  select.probe_steps = 100

  # What makes the pruned model: `dilute` trains it, `linearize` fits affine
  # maps instead of the chosen attention layers, without training or labels;
  # `compress` chooses among all parts of the network and fits, likewise.
  config.method = 'dilute'

  config.linearize = linearize = ml_collections.ConfigDict()
  # Images of the held-out slice that maps are fitted on; all when empty.
  linearize.num_images = free(512)
  # Fit to their mirrored copies as well: more images for nothing, at twice the
  # time, where left and right do not matter.
  linearize.mirrored = False
  # Ridge penalty, as a share of the inputs' mean variance; `auto` chooses for
  # each block what predicts held-out images best.
  linearize.ridge = free('auto')
  # Largest rank of a map; no limit when empty.
  linearize.rank = free()
  # Fit each map on the network as modified so far, instead of all at once.
  linearize.sequential = True
  # Inputs of a map: `token`, and optionally `mean` (of the image's tokens),
  # `class_map` (a separate map for the class token), `neighbours` (the mean of
  # 3 x 3 patches), `positions` (an intercept for each) and `mixing` (values of
  # the heads, mixed by fixed matrices over the tokens). `auto` chooses for each
  # block what pays, `auto:SHARE` within a budget: 0 is the cost of `token`, 1
  # that of attention, 0.5 the default.
  linearize.inputs = ('token',)
  # What a map is fitted to: `stream` brings the modified network's stream to the
  # dense one, `attention` is what the block's own attention adds.
  linearize.target = 'stream'
  # Recalibrate scale and bias of the norms after the maps, so that each channel
  # has the dense network's mean and variance there. A warm start does not
  # use them.
  linearize.recentre = False
  # Let the MLPs after the first change make up for what is lost, by least
  # squares on their hidden layers. A warm start does not use them.
  linearize.refit = False
  # Steps of Adam on the same images, towards the dense network's streams and
  # logits, for the maps and the MLPs that follow; 200 to 1000 where a loss of
  # some points matters, 0 for none. A warm start does not use them.
  linearize.polish_steps = 0
  # Their highest learning rate.
  linearize.polish_learning_rate = 3e-5
  # Least share of an image's area in the random crops of it that they see, half of
  # them mirrored; 1 for the images as they are.
  linearize.polish_crop_area = 0.5
  # Without maps the chosen attention layers are left out; best with `refit`.
  linearize.maps = True
  # Whole blocks to leave out, attention and MLP: this many in a row, the run
  # with the smallest angle between input and output; use `refit` for more than
  # a few. Set select.num_layers=0 to keep the other attention layers.
  linearize.num_drop_blocks = 0
  # The blocks themselves, instead of their number.
  linearize.drop_blocks = ()

  config.compress = compress = ml_collections.ConfigDict()
  # How many times as fast as the dense network: above 1.
  compress.target_speedup = 1.5
  # What may go: any of attention, neurons (of MLPs, by eighths), mlps, blocks,
  # and tokens (that merge, in the blocks that keep their attention).
  compress.parts = ('attention', 'neurons', 'blocks')
  # What a part's loss is: output (how far the output is from the dense one) or
  # transfer_entropy.
  compress.criterion = 'output'
  # The output that is compared: logits or features.
  compress.target = 'logits'
  # What is saved: macs (operations that are executed) or time (measured on the
  # device at hand).
  compress.cost = 'macs'
  # Inputs of the maps that take the place of attention, as linearize.inputs;
  # token, mean and class_map when empty, and no maps with ().
  compress.inputs = free()
  # Whether maps, neurons that stay and MLPs make up for what goes.
  compress.repair = True
  # Ridge penalty of these fits; `auto` chooses for each.
  compress.ridge = free('auto')
  # lazy scores few parts again in each step, all every one.
  compress.rescore = 'lazy'
  # Images of the held-out slice; all when empty.
  compress.num_images = free(512)

  config.dilute = _training(5e-4)
  # How long λ takes to fall from 1 to 0: steps, or epochs as '300ep'.
  config.dilute.dilution_steps = free('300ep')
  # Training at λ = 0 after that, without the diluted attention layers.
  config.dilute.settle_steps = free('100ep')
  # Scale the residual by 2 - λ; if False, by 1 (the paper's ablation).
  config.dilute.compensation = True
  # `attention`: λ blends attention into the identity. `linear`: into the maps
  # that `linearize` fits in the first half of the steps, and from the maps into
  # the identity in the second.
  config.dilute.start = 'attention'
  # What λ leads to. `identity`: x + x, for the layers of `select`. `linear` and
  # `compressed`: the network that `linearize` or `compress` makes, of maps,
  # repaired MLPs and fewer blocks, which is then trained.
  config.dilute.towards = 'identity'

  config.export = export = ml_collections.ConfigDict()
  # Any of orbax, safetensors, stablehlo, onnx, openvino, transformers; orbax is
  # always written.
  export.formats = ('orbax', 'safetensors', 'stablehlo')
  # Storage type of the portable formats: float32, bfloat16, float16 or int8;
  # int8 quantises matrices, in params/ too.
  export.dtype = 'float32'
  # How int8 matrices are multiplied: weights (converted to floats), dynamic
  # (each token is quantised as well; integer products), or static (so are
  # activations, with scales found on held-out images; for onnx and openvino,
  # params/ stay in float32). static:0.02 accepts a loss of 0.02 of top-1.
  export.int8_arithmetic = 'weights'
  # Write zeros for removed attention layers, so that stock timm loads the file.
  export.zero_fill = False
  # Where dilute.ema keeps an average: `ema` exports the average, `raw` the
  # parameters themselves. Both are evaluated. The average starts anew at λ = 0.
  export.weights = 'ema'
  # Of `dilute`: `last`, or `best` for the checkpoint at λ = 0 with the highest
  # accuracy on held-out images (see eval_every).
  export.checkpoint = 'last'
  # OWNER/NAME on the Hugging Face hub: stage `export` writes a model card from
  # what the workdir holds by then and uploads the folder; empty for neither.
  export.hub = ''

  config.evaluate = evaluate = ml_collections.ConfigDict()
  # Also train the dense model for the steps of `dilute`, for a comparison of
  # networks that have seen as many images; takes longer than `dilute` itself.
  evaluate.baseline = True

  config.benchmark = benchmark = ml_collections.ConfigDict()
  # Images per call.
  benchmark.batch_size = 16
  # More batch sizes to measure in the same way, (1, 4, 16); none when empty.
  benchmark.batch_sizes = ()
  # Rounds in which each program has its turn; when empty, as many as it takes
  # until the 95% interval of pruned over dense is narrow, or time is up.
  benchmark.rounds = free()
  # The longest that the rounds of one batch size may take.
  benchmark.seconds = 30.0
  # Half the width of an interval that is narrow enough, as a share of the ratio.
  benchmark.precision = 0.02
  # Also compare these, where they are installed: any of jax, onnxruntime,
  # openvino and torch; none when empty.
  benchmark.runtimes = ()
  # The first test images, on which the accuracy in each runtime is measured;
  # 0 for none.
  benchmark.test_images = 256

  config.mesh = mesh = ml_collections.ConfigDict()
  # Devices that share one copy of the parameters; 1 keeps a copy on each.
  mesh.fsdp = 1
  config.metrics = metrics = ml_collections.ConfigDict()
  # Event files in WORKDIR/tensorboard besides metrics.jsonl (extra
  # `tensorboard`).
  metrics.tensorboard = False
  # Weights & Biases project to log to (extra `wandb`); empty for none.
  metrics.wandb = ''
  # Steps between two lines of metrics.jsonl.
  config.log_every = 50
  # Steps between two checkpoints.
  config.checkpoint_every = 500
  # How many of a stage's newest checkpoints are kept, besides the best one (see
  # export.checkpoint).
  config.keep_checkpoints = 2
  # Steps between evaluations on the held-out images, which decide what is best;
  # every checkpoint when empty, 0 for never.
  config.eval_every = free()
  # Where a stage resumes from if it has no checkpoint in the workdir yet:
  # another workdir, or WORKDIR/checkpoints/STAGE/STEP.
  config.resume_from = ''
  # START,STOP: trace these steps of each stage into WORKDIR/profile.
  config.profile = ''
  return config


def smoke(config: ml_collections.ConfigDict) -> None:
  """Shrinks a recipe to a few steps on digits, for `:runlocal`.

  The network is the one that ships with the package; it has 12 blocks, too.
  """
  config.batch_size = 8
  config.init = 'builtin:vit_mini_patch2_8_digits'
  config.data.source = 'digits'
  config.data.holdout_images = min(config.data.holdout_images, 128)
  config.data.workers = 0
  config.model.variant = 'vit_mini_patch2_8'
  config.model.image_size = 8
  config.model.dtype = 'float32'
  config.dilute.mix_size = None
  # A rate for such a small batch would be below that of the last step.
  config.dilute.scale_by_batch = False
  config.dilute.warmup_steps = 1
  config.dilute.dilution_steps = config.dilute.settle_steps = 2
  config.log_every = config.checkpoint_every = 2
  config.benchmark.rounds = 2


def imagenet_deit(
  size: str, published: tuple[int, ...], argument: str | None
) -> ml_collections.ConfigDict:
  """The authors' recipe for DeiT on ImageNet-1k, see docs/method.md.

  Mixing draws once per 256 images, as each of the authors' 8 devices does. With
  the published layers nothing is held out, so that an epoch has their 625 steps;
  there is then no analysis, and no score before the last.

  Args:
    size: tiny, small or base.
    published: the layers that the paper removes.
    argument: `select` chooses by NOSE instead, `short` takes 20 + 10 epochs
      with distillation from the dense model instead of 300 + 100, `runlocal`
      is a smoke run of a few steps on digits.
  """
  chosen = parse_argument(argument, select=False, short=False, runlocal=False)
  variant = f'deit_{size}_patch16_224'
  config = base()
  config.batch_size = 2048
  config.init = f'hf-hub:timm/{variant}.fb_in1k'
  config.data.source = 'tfds:imagenet2012'
  # Read by selection alone.
  config.data.holdout_images = 10_000 if chosen['select'] else 0
  config.data.augment.kind = 'deit'
  config.data.repeats = 3
  config.data.workers = 16
  config.model.variant = variant
  config.model.crop_ratio = 0.875
  config.model.dtype = 'bfloat16'

  config.select.num_layers = len(published)
  config.select.layers = published
  config.select.criterion = 'transfer_entropy' if chosen['select'] else 'given'

  config.dilute.learning_rate = 5e-4
  config.dilute.scale_by_batch = True
  config.dilute.warmup_steps = '5ep'
  config.dilute.clip_norm = 0.0
  config.dilute.mixup = 0.8
  config.dilute.cutmix = 1.0
  config.dilute.mix_size = 256
  config.dilute.drop_path_rate = 0.1
  config.dilute.ema = 0.99996
  # The authors evaluate the parameters themselves.
  config.export.weights = 'raw'
  if chosen['short']:
    config.dilute.dilution_steps = '20ep'
    config.dilute.settle_steps = '10ep'
    config.dilute.warmup_steps = '1ep'
    config.dilute.distill = 'soft'
    config.dilute.ema = 0.0

  if chosen['runlocal']:
    smoke(config)
    config.data.repeats = 1
  return config
