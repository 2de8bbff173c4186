"""The stages of a run in order: what each does, and the files it writes.

Plain data, so that `--help` needs no jax; `stages/registry.py` adds the
functions. Names are relative to the workdir; those of folders end in `/`.
"""

import dataclasses

CONFIG = 'config.json'
METRICS = 'metrics.jsonl'
# Seconds, day, machine and versions of each stage.
JOURNAL = 'stages.json'
PRETRAINED = 'checkpoints/pretrain/'
ANALYSIS = 'analysis.json'
SELECTION = 'selection.json'
# Rounds of a search that is not finished, and losses of short dilutions.
PARTIAL_SELECTION = 'selection.part.json'
PARTIAL_PROBE = 'probe.part.json'
LINEAR = 'linear/model.json'
# Of a polish that is not finished.
POLISHED = 'checkpoints/linearize/'
COMPRESSION = 'compression.json'
COMPRESSED = 'compressed/model.json'
DILUTED = 'checkpoints/dilute/'
BASELINE = 'checkpoints/baseline/'
EXPORT = 'export/model.json'
EVALUATION = 'evaluation.json'
PICTURES = 'pictures/'
BENCHMARK = 'benchmark.json'
REPORT = 'report.html'


@dataclasses.dataclass(frozen=True)
class StageSpec:
  """A stage as data.

  Attributes:
    name: as on the command line.
    help: its line in `lambda-vit --help`.
    writes: its results; the first is written last, and is there once the
      stage is finished. Some depend on the config.
    reads: results of earlier stages that it needs; of `linearize`,
      `compress`, `dilute` and `baseline`, those that the config asks for.
    partial: files that an unfinished stage resumes from.
  """

  name: str
  help: str
  writes: tuple[str, ...]
  reads: tuple[str, ...] = ()
  partial: tuple[str, ...] = ()

  @property
  def result(self) -> str:
    """The file or folder that is there once the stage is finished."""
    return self.writes[0]

  @property
  def trains(self) -> bool:
    """Whether the result is a folder of checkpoints."""
    return self.result.startswith('checkpoints/')


STAGES: dict[str, StageSpec] = {
  spec.name: spec
  for spec in (
    StageSpec(
      'pretrain',
      'a dense model, from --config.init weights or from scratch',
      writes=(PRETRAINED,),
    ),
    StageSpec(
      'analyze',
      'entropy per layer, and the spectrum of features',
      writes=(ANALYSIS,),
      reads=(PRETRAINED,),
    ),
    StageSpec(
      'select',
      'which attention layers go (NOSE, or another criterion)',
      writes=(SELECTION,),
      reads=(PRETRAINED,),
      partial=(PARTIAL_SELECTION, PARTIAL_PROBE),
    ),
    StageSpec(
      'linearize',
      'affine maps instead of those layers, without training',
      writes=(LINEAR, 'linear/params/'),
      reads=(PRETRAINED, SELECTION),
      partial=(POLISHED,),
    ),
    StageSpec(
      'compress',
      'attention, MLPs and blocks under one budget, without training',
      writes=(COMPRESSED, 'compressed/params/', COMPRESSION),
      reads=(PRETRAINED,),
      partial=(COMPRESSION,),
    ),
    StageSpec(
      'dilute',
      'λ from 1 to 0 over those layers, then training without them',
      writes=(DILUTED,),
      reads=(PRETRAINED, SELECTION, LINEAR, COMPRESSED),
    ),
    StageSpec(
      'export',
      'the pruned parameter tree and portable formats',
      writes=(
        EXPORT,
        'export/config.json',
        'export/params/',
        'export/model.safetensors',
        'export/model.stablehlo',
        'export/model.onnx',
        'export/model.xml',
        'export/model.bin',
      ),
      reads=(DILUTED, LINEAR, COMPRESSED),
    ),
    StageSpec(
      'baseline',
      'the dense model, trained for the same steps as the pruned one',
      writes=(BASELINE,),
      reads=(PRETRAINED,),
    ),
    StageSpec(
      'evaluate',
      'exact accuracy of dense, baseline, pruned and exported',
      writes=(EVALUATION, PICTURES),
      reads=(PRETRAINED, BASELINE, DILUTED, LINEAR, COMPRESSED, EXPORT),
    ),
    StageSpec(
      'benchmark',
      'sizes and speed, dense against pruned in one run',
      writes=(BENCHMARK,),
      reads=(PRETRAINED, DILUTED, LINEAR, COMPRESSED, EXPORT),
    ),
    StageSpec(
      'report',
      'one self-contained page with the plots and tables',
      writes=(REPORT,),
    ),
  )
}


def results(*stages: str) -> tuple[str, ...]:
  """Returns the files by which to see that stages have computed something."""
  return tuple(
    name
    for stage in stages
    for name in (STAGES[stage].result, *STAGES[stage].partial)
  )
