"""The texts of `lambda-vit --help` and `lambda-vit STAGE --help`."""

import dataclasses
import textwrap

from lambda_vit_jax.cli import stage_table

STAGES = {
  'run': 'all stages, from the first unfinished one on',
  **{name: spec.help for name, spec in stage_table.STAGES.items()},
}
"""By name, what the help of the whole program prints of each stage."""

COMMANDS = {
  'predict': '--model=DIR IMAGE...  the best classes of each image',
  'models': '[--filter=TEXT]  the table of variants',
  'check-data': 'SOURCE  reads a data set once and reports what it found',
}


@dataclasses.dataclass(frozen=True)
class Help:
  """The help of one stage or command.

  Attributes:
    synopsis: the command line, after its name.
    text: what it does.
    examples: whole command lines.
    flags: those that no other command has, one per line.
    note: text below the examples.
  """

  synopsis: str
  text: str
  examples: tuple[str, ...]
  flags: str = ''
  note: str = ''


_NOTE = """\
A workdir keeps one config: give all its stages the same --config.... flags.
If finished stages have read other values, choose another --workdir; in a new
one, `lambda-vit run` with the same flags runs the earlier stages, too.
"""


def _stage(name: str, block: str) -> Help:
  """Help of a stage from its text and, after an empty line, its examples.

  An example is a workdir and overrides; the plain command line is the first.
  """
  text, _, examples = block.strip().partition('\n\n')
  commands = []
  for line in ('digits', *examples.splitlines()):
    workdir, _, overrides = line.partition(' ')
    config = '--config=configs/digits.py'
    if overrides.startswith('--config='):
      config, _, overrides = overrides.partition(' ')
    command = f'lambda-vit {name} {config} --workdir=runs/{workdir} {overrides}'
    commands.append(command.rstrip())
  synopsis = '--config=FILE.py[:args] --workdir=DIR [--config.key=value ...]'
  return Help(synopsis, text, tuple(commands), note=_NOTE)


_STAGES = {
  'run': """
All stages in order, skipping each whose result is there.
Run the same command again after an interruption.

digits_3 --config.select.num_layers=3
""",
  'pretrain': """
Trains the dense model: from --config.init weights, or from scratch.
With 0 steps the weights are taken as they are.

deit_s --config=configs/imagenet_deit_small.py \
--config.init=hf-hub:timm/deit_small_patch16_224.fb_in1k
digits_long --config.init= --config.pretrain.steps=30ep
""",
  'analyze': """
Entropy of every attention and MLP output, and the spectrum of the
features, on held-out training images.

digits_128 --config.analyze.num_images=128
""",
  'select': """
Chooses the attention layers to remove: NOSE, or another criterion.
Exactly one of num_layers, removal_ratio and target_speedup is in force.

digits_6 --config.select.num_layers=6
digits_fast --config.select.target_speedup=1.2
digits_given --config.select.criterion=given --config.select.layers="(0, 1, 3)"
""",
  'dilute': """
Trains with λ going from 1 to 0 over the chosen layers, then without
them.

digits_long --config.dilute.dilution_steps=300ep --config.dilute.settle_steps=100ep
digits_plain --config.dilute.compensation=False
digits_small --config.dilute.towards=compressed --config.dilute.distill=soft
""",
  'linearize': """
Training-free: replaces the chosen attention layers by least-squares
maps, or leaves out whole blocks; fitted on unlabelled images.
With --config.method=linearize, `run` has this stage instead of dilute.

digits_linear --config.method=linearize --config.linearize.num_images=512
digits_maps --config.linearize.inputs="('token', 'mean', 'class_map')"
digits_refit --config.linearize.maps=False --config.linearize.refit=True
digits_shorter --config.linearize.num_drop_blocks=3 --config.linearize.refit=True
""",
  'compress': """
Makes the network so many times as fast without training: attention,
neurons and blocks go where the output needs them least, and closed forms
on unlabelled images make up for them.
With --config.method=compress, `run` has this stage instead of select,
linearize and dilute.

digits_compress --config.method=compress --config.compress.target_speedup=1.5
digits_heads --config.compress.parts="('attention',)"
digits_time --config.compress.cost=time
""",
  'export': """
Exports the pruned parameters, and portable formats that are checked
against the model. Formats onnx and openvino need an extra:
pip install 'lambda_vit_jax[onnx]' or 'lambda_vit_jax[openvino]'.

digits_onnx --config.export.formats="('orbax', 'safetensors', 'onnx')"
digits_bf16 --config.export.dtype=bfloat16
digits_int8 --config.export.dtype=int8 --config.export.int8_arithmetic=dynamic
""",
  'baseline': """
Trains the dense model for the steps of dilute, with its settings, so
that evaluate compares networks that have seen as many images.
With --config.evaluate.baseline=False, `run` leaves it out.

digits_plain --config.evaluate.baseline=False
""",
  'evaluate': """
Exact accuracy of the dense, the pruned and the exported model, and of
the baseline, over every test image.
""",
  'benchmark': """
Parameters, MACs, bytes, memory and images per second, dense against
pruned against exported in one run.
Without a config, --model=EXPORT_DIR measures an export in the runtimes
that are installed, beside a dense network with random weights:
lambda-vit benchmark --model=EXPORT_DIR [--runtimes=jax,onnxruntime]
[--batch_size=16] [--rounds=N] [--seconds=30] [--json] [--quiet].

digits --config.benchmark.batch_size=1
digits --config.benchmark.batch_sizes="(1, 4, 16)"
digits --config.benchmark.runtimes="('jax', 'onnxruntime', 'openvino')"
""",
  'report': """
One self-contained page with the plots and tables of what is there so
far.
""",
}

HELP: dict[str, Help] = {
  **{name: _stage(name, block) for name, block in _STAGES.items()},
  'predict': Help(
    '--model=DIR IMAGE... [--variant=NAME] [--topk=5] [--runtime=NAME] [--json]',
    'The most probable classes of each image, or of each in a folder. DIR is\n'
    'an export, a workdir, a weight file, or a name like hf-hub:timm/NAME.\n'
    'An image that cannot be read does not stop the others; the exit code is\n'
    'then 1.',
    (
      'lambda-vit predict --model=runs/digits/export seven.png',
      'lambda-vit predict --model=runs/digits/export --topk=2 photos/',
      'lambda-vit predict --model=runs/digits/export --json *.png',
    ),
    """\
  --model=DIR              an export, a workdir, a weight file, builtin:NAME or
                           hf-hub:timm/NAME; needed
  --variant=NAME           a name of `lambda-vit models`, where the weights fit
                           several
  --topk=N                 how many classes; 5 by default
  --runtime=NAME           compute with onnxruntime, openvino or torch instead,
                           from the file of an export
""",
  ),
  'models': Help(
    '[--filter=TEXT] [--json]',
    'The table of variants: sizes, and where their weights are.',
    ('lambda-vit models --filter=dinov2',),
    """\
  --filter=TEXT            only variants with this in their name, in upper or
                           lower case; * stands for any text
""",
  ),
  'check-data': Help(
    'SOURCE [--json]',
    'Reads a data set once: sizes, classes, broken and repeated images.\n'
    'SOURCE is digits, image_folder:DIR, segmentation_folder:DIR, idx_folder:DIR\n'
    'or tfds:NAME.',
    (
      'lambda-vit check-data digits',
      'lambda-vit check-data image_folder:flowers --json',
    ),
  ),
}
"""By the name of the stage or command."""

_FLAGS = """\
  --config=FILE.py[:args]  a config file; NAME is configs/NAME.py of the package
  --config.a.b=value       overrides one value of it
  --workdir=DIR            where results go; may be gs://... (extra `gcs`)
  --print-config           the values that would be used, as flags; runs nothing
  --json                   one JSON object on stdout, nothing else there
  --quiet                  no progress and no hints, warnings alone
  --debug                  tracebacks
  --distributed            one of several processes, found by themselves: TPU
                           pods, Slurm, Open MPI, Kubernetes (docs/pods.md)
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                           the same, anywhere
"""

_COMMAND_FLAGS = """\
  --json                   JSON on stdout instead of text
  --quiet                  no progress
  --debug                  tracebacks
"""

_ENVIRONMENT = """\
environment:
  NO_COLOR                 any value: no colours (nor are there in a file)
  LAMBDA_VIT_CACHE         where compiled programs are kept; `off` for nowhere
"""


def _lines(table: dict[str, str]) -> str:
  return '\n'.join(f'  {name:<10} {what}' for name, what in table.items())


_OVERVIEW = f"""\
usage: lambda-vit STAGE --config=FILE.py[:args] --workdir=DIR \
[--config.key=value ...]
       lambda-vit predict --model=DIR IMAGE...
       lambda-vit models [--filter=TEXT]
       lambda-vit check-data SOURCE
       lambda-vit help [STAGE] | --version | completion bash

stages:
{_lines(STAGES)}

commands without a config:
{_lines(COMMANDS)}

flags:
{_FLAGS}
{_ENVIRONMENT}
example:
  lambda-vit run --config=configs/digits.py --workdir=runs/digits
  lambda-vit run --config=configs/digits.py --workdir=runs/digits_6 \
--config.select.num_layers=6
"""


def help_of(name: str) -> str:
  """Returns the help of a stage or command, by default of the whole program."""
  if name not in HELP:
    return _OVERVIEW
  found = HELP[name]
  text = found.text
  spec = stage_table.STAGES.get(name)
  for verb, names in (
    (('Reads', spec.reads), ('Writes', spec.writes)) if spec else ()
  ):
    if names:
      line = f'{verb} {", ".join(names)}.'
      text += '\n' + textwrap.fill(line, 76, break_on_hyphens=False)
  flags = _COMMAND_FLAGS if name in COMMANDS else _FLAGS
  examples = '\n'.join(f'  {line}' for line in found.examples)
  note = f'\n{found.note}' if found.note else ''
  return (
    f'usage: lambda-vit {name} {found.synopsis}\n\n{text}\n\n'
    f'flags:\n{found.flags}{flags}\n'
    f'{_ENVIRONMENT}\nexamples:\n{examples}\n{note}'
  )
