"""Wrong programs that tests once let pass, or that a reader might write.

`mutation.py --named` makes each change alone and runs the tests written for
its file; every one must be noticed. Each text occurs once in its file, which
tests/docs/test_mutation.py checks.
"""

from typing import NamedTuple


class Change(NamedTuple):
  """One wrong program.

  Attributes:
    file: relative to the package.
    old: a text in it.
    new: what takes its place.
    what: the mistake, in words.
  """

  file: str
  old: str
  new: str
  what: str


_STEP = 'training/step.py'
_OPTIM = 'training/optim.py'
_LOSSES = 'training/losses.py'
_MIXING = 'training/mixing.py'
_NOSE = 'selection/nose.py'
_CRITERIA = 'selection/criteria.py'
_BOOTSTRAP = 'selection/bootstrap.py'
_RANDAUGMENT = 'data/randaugment.py'
_READERS = 'data/readers.py'
_REFIT = 'training_free/mlp_refit.py'
_SQUARES = 'training_free/least_squares.py'

CHANGES = [
  Change(
    _STEP,
    'jnp.where(begun, 1.0 - settings.ema_decay, 1.0)',
    'jnp.where(begun, settings.ema_decay, 1.0)',
    'the rate of the average is inverted',
  ),
  Change(
    _STEP,
    'begun = state.step >= settings.ema_start',
    'begun = state.step >= 0',
    'the average is not begun anew',
  ),
  Change(
    _STEP,
    'begun = state.step >= settings.ema_start',
    'begun = state.step > settings.ema_start',
    'the average begins a step late',
  ),
  Change(
    _STEP,
    'ema=params if with_ema',
    'ema=jax.tree.map(jnp.zeros_like, params) if with_ema',
    'the average starts at zero',
  ),
  Change(
    _STEP,
    'jax.random.key(seed)',
    'jax.random.key(0)',
    'the seed is ignored',
  ),
  Change(
    _STEP,
    'jax.random.fold_in(jax.random.key(seed), state.step)',
    'jax.random.fold_in(jax.random.key(seed), 0)',
    'every step makes the same random choices',
  ),
  Change(
    _STEP,
    'smoothing = settings.label_smoothing',
    'smoothing = 0.0',
    'label smoothing is ignored',
  ),
  Change(
    _STEP,
    'teacher, teacher_params, images,',
    "teacher, teacher_params, batch['image'],",
    'the teacher sees images that were not mixed',
  ),
  Change(
    _STEP,
    'loss += weight * _dist',
    'loss += (1.0 - weight) * _dist',
    'the weight of the distillation is inverted',
  ),
  Change(
    _STEP,
    'drop_path_key=drop_path_key',
    'drop_path_key=None',
    'drop path is off',
  ),
  Change(
    _STEP,
    'mixup_alpha=settings.mixup_alpha',
    'mixup_alpha=settings.cutmix_alpha',
    "mixup by cutmix's parameter",
  ),
  Change(
    _STEP,
    'cutmix_alpha=settings.cutmix_alpha',
    'cutmix_alpha=settings.mixup_alpha',
    "cutmix by mixup's parameter",
  ),
  Change(
    _OPTIM,
    "b1=settings['b1'], b2=settings['b2']",
    "b1=settings['b2'], b2=settings['b1']",
    'the betas of Adam are swapped',
  ),
  Change(
    _OPTIM,
    "  'pos_embed',\n",
    '',
    'position embeddings decay',
  ),
  Change(
    _OPTIM,
    'leaf.ndim > 1 and names[-1]',
    'leaf.ndim > 0 and names[-1]',
    'biases decay',
  ),
  Change(
    _OPTIM,
    "1.0 if last and names[0] != 'norm_pre' else",
    '1.0 if last else',
    'norm_pre learns at the rate of the head',
  ),
  Change(
    _OPTIM,
    'decay ** (depth - int(block[1]))',
    'decay ** (depth - int(block[1]) + 1)',
    'blocks learn at the rate of the one below',
  ),
  Change(
    _OPTIM,
    'optax.clip_by_global_norm(',
    'optax.clip(',
    'gradients are clipped one by one',
  ),
  Change(
    _OPTIM,
    'schedule(n * each + each - 1)',
    'schedule(n)',
    'the rate counts updates instead of steps',
  ),
  Change(
    _LOSSES,
    'divergence.mean() * temperature**2',
    'divergence.mean()',
    'soft distillation lacks the squared temperature',
  ),
  Change(
    _LOSSES,
    'student = jax.nn.log_softmax(logits / temperature)',
    'student = jax.nn.log_softmax(logits)',
    'the student has no temperature',
  ),
  Change(
    _LOSSES,
    'jnp.exp(teacher) * (teacher - student)',
    'jnp.exp(student) * (student - teacher)',
    'the divergence is the other way round',
  ),
  Change(
    _LOSSES,
    'labels = teacher_logits.argmax(axis=-1)',
    'labels = logits.argmax(axis=-1)',
    "hard distillation follows the student's own prediction",
  ),
  Change(
    _LOSSES,
    'logits.mean(axis=-1)\n    loss = (1.0 - smoothing) * loss',
    'logits.mean(axis=-1)\n    loss = loss',
    'smoothing of pixels adds instead of mixing',
  ),
  Change(
    'training/dilution.py',
    'return dilution_schedule(self.steps)(step)',
    'return dilution_schedule(self.steps)(step).astype(jnp.bfloat16).astype('
    'jnp.float32)',
    'λ is rounded to bfloat16',
  ),
  Change(
    _MIXING,
    'ratio = jnp.sqrt(1.0 - kept)',
    'ratio = 1.0 - kept',
    'the sides of the box shrink like its area',
  ),
  Change(
    _MIXING,
    'row_key, column_key = jax.random.split(key)',
    'row_key = column_key = key',
    'rows and columns of the box share one draw',
  ),
  Change(
    _MIXING,
    '(cut + 1) // 2',
    'cut // 2',
    'boxes of odd sides lose a pixel',
  ),
  Change(
    _MIXING,
    'share = jnp.where(cut, outside.mean(), share)',
    'share = jnp.where(cut, kept, share)',
    'targets ignore that the box was clipped',
  ),
  Change(
    _CRITERIA,
    "size = abs if sign == 'absolute' else float",
    'size = float',
    'the sign is ignored',
  ),
  Change(
    _CRITERIA,
    'trial: mean(moments) - dense for',
    'trial: dense - mean(moments) for',
    'the increase of the loss has the wrong sign',
  ),
  Change(
    _NOSE,
    'candidates) - set(found.order)',
    'candidates) - set(found.order[:1])',
    'a chosen layer may be chosen again',
  ),
  Change(
    _NOSE,
    'found.with_round(row, scores.base_entropy,',
    'found.with_round(row, max(scores.values.values()),',
    'the base entropy is not the base entropy',
  ),
  Change(
    _BOOTSTRAP,
    'np.random.default_rng(seed)',
    'np.random.default_rng(0)',
    'the seed of the resamples is ignored',
  ),
  Change(
    _BOOTSTRAP,
    "key = np.abs if sign == 'absolute' else np.asarray",
    'key = np.asarray',
    'resamples choose signed where the search did not',
  ),
  Change(
    _BOOTSTRAP,
    '(table[block] - table[chosen]).std()',
    'table[block].std()',
    'pairs are compared as if they were independent',
  ),
  Change(
    _RANDAUGMENT,
    'Draw(strength, sign, fill, resample)',
    'Draw(strength, sign, 0, resample)',
    'moved pixels are filled with black',
  ),
  Change(
    _RANDAUGMENT,
    'round(math.sqrt(target / ratio))',
    'round(math.sqrt(target))',
    'the aspect of erased rectangles is ignored',
  ),
  Change(
    _READERS,
    '_generator(self.seed, _PIXELS, position, attempt)',
    '_generator(self.seed, _ORDER, position, attempt)',
    'order and pixels share a stream',
  ),
  Change(
    _READERS,
    '_generator(self.seed, _PIXELS, position, attempt)',
    '_generator(self.seed, _PIXELS, draw, attempt)',
    'repeats of an image are changed alike',
  ),
  Change(
    _READERS,
    'counter=(place << 192) | (attempt << 128)',
    'counter=place | (attempt << 128)',
    'streams of neighbouring images overlap',
  ),
  Change(
    _REFIT,
    'correction.bias * share',
    'correction.bias',
    'the corrected bias ignores LayerScale',
  ),
  Change(
    _SQUARES,
    'affine.bias + moments.mean_in @ (affine.kernel - kernel)',
    'affine.bias',
    'a reduced rank moves the mean prediction',
  ),
  Change(
    _SQUARES,
    'kernel.T @ (moments.in_in @ kernel + added * kernel)',
    'kernel.T @ (moments.in_in @ kernel)',
    'a reduced rank ignores the ridge',
  ),
  Change(
    'models/attention.py',
    "jax.default_backend() == 'gpu'",
    "jax.default_backend() == 'tpu'",
    'cuDNN is chosen on the wrong backend',
  ),
  Change(
    'models/attention.py',
    'head_dim % 8 == 0',
    'head_dim % 8 != 0',
    'cuDNN is given widths that it refuses',
  ),
]
