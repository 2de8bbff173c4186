"""A fine-tuned real backbone at equal further steps: the tables of evidence*.json.

The parts of docs/results_trained.md and README.md between two comments each; and
the table of dilution_paths.json.
"""

from typing import Any

from tables.parts import layers, origin, percent, table

_DEPTH = 12
ROWS = {
  'dense more': 'dense',
  'compress 1.5': '`lv.compress` 1.5x, `lv.dilute` towards it',
  'compress 1.5 direct': '`lv.compress` 1.5x, trained as it is',
  'compress 1.5 tokens direct': '`lv.compress` 1.5x with tokens, trained as it is',
  'compress 2': '`lv.compress` 2x, `lv.dilute` towards it',
  'compress 2 direct': '`lv.compress` 2x, trained as it is',
  'compress 2 tokens direct': '`lv.compress` 2x with tokens, trained as it is',
  'nose maps': "NOSE's 5 of 12 attention layers become maps, `lv.dilute`",
  'nose identity': "NOSE's 5, the paper's path: x + x",
  'nose absent': "NOSE's 5 become nothing: x",
  'output maps': "`output`'s 5 become maps, `lv.dilute`",
  'last maps': 'the last 5 become maps, `lv.dilute`',
  'compress 1.5 streams': '`lv.compress` 1.5x, `distill=streams`',
  'compress 2 streams': '`lv.compress` 2x, `distill=streams`',
  'nose maps streams': "NOSE's 5 become maps, `distill=streams`",
}
SCENES = {
  'dense more': 'dense',
  'nose identity': "NOSE's 5 of 12 attention layers, the paper's path: x + x",
  'nose maps': "NOSE's 5 of `dense` become maps, not trained after that",
  'last maps': 'the last 5 of `dense` become maps, likewise',
}
_PATHS = {
  'dense': 'dense',
  'maps': 'closed-form maps, which stay',
  'maps absent': 'maps, which then fade: x',
  'absent': 'nothing: x',
  'identity': "the paper's end: x + x",
}
_LOSSES = {'soft': 'labels and teacher', 'labels': 'labels'}
# Those of the first page.
_FIRST = (
  'dense more',
  'compress 1.5 tokens direct',
  'compress 2 tokens direct',
)


def evidence_section(found: dict[str, Any]) -> str:
  """What was measured, and every row, for docs/results_trained.md."""
  recipe = found['recipe']
  text = (
    f'DINOv2 ViT-S/14 at {found["image_size"]} pixels (17 tokens) on all 101 '
    f'classes of Caltech-101, {found["train_images"]:,} training and '
    f'{found["test_images"]:,} test images. The weights are those of a package '
    'that has tuned them to find what matters in an image; their features are '
    'weaker than the original ones. A linear probe '
    f'({percent(found["rows"]["probe"]["top1"])}%) starts the head, '
    f'{recipe["epochs"]} epochs train all parameters '
    f'({percent(found["rows"]["dense"]["top1"])}%), and from that network every '
    f'row takes the same {recipe["more_epochs"]} further epochs, half by labels and '
    'half by its soft targets. `Before` is the accuracy of the smaller network '
    'without them, made in closed form from '
    f'{found["calibration_images"]} unlabelled training images, which choose, too. '
    'Differences, in points, are to `dense` with the same further epochs and seed, '
    'with the paired 95% interval over the test images, which says nothing about '
    'other seeds. Times fewer: executed multiply-accumulates.'
  )
  return f'{text}\n\n{_rows(found, "evidence")}'


def cifar10_section(found: dict[str, Any]) -> str:
  """The same on other images, after `evidence_section`."""
  recipe = found['recipe']
  return (
    f'The same on CIFAR-10: {found["train_images"]:,} training images, drawn at '
    f'random, and {found["test_images"]:,} test images. The probe reaches '
    f'{percent(found["rows"]["probe"]["top1"])}%, {recipe["epochs"]} epochs of all '
    f'parameters {percent(found["rows"]["dense"]["top1"])}%, and every row takes '
    f'{recipe["more_epochs"]} further ones.\n\n'
    f'{_rows(found, "evidence_on_cifar10")}'
  )


def ten_epochs_section(found: dict[str, Any]) -> str:
  """Longer training, after `cifar10_section`."""
  return (
    f'Caltech-101 again, with {found["recipe"]["more_epochs"]} further epochs in '
    'place of three, from a network that was fine-tuned alike on this machine.\n\n'
    f'{_rows(found, "evidence_with_ten_epochs")}'
  )


def tokens_section(found: dict[str, Any]) -> str:
  """The same at the size of the results without training, tokens merged."""
  recipe = found['recipe']
  return (
    f'Caltech-101 at {found["image_size"]} pixels (65 tokens), where there are '
    'tokens to merge. A step costs four times as much here, so the epochs are '
    f'fewer: after the probe ({percent(found["rows"]["probe"]["top1"])}%) '
    f'{recipe["epochs"]} for all parameters '
    f'({percent(found["rows"]["dense"]["top1"])}%) and {recipe["more_epochs"]} '
    f'further ones, with a learning rate of {recipe["more_learning_rate"]:g} in '
    f'place of 5e-5.\n\n{_rows(found, "evidence_with_tokens")}'
  )


def paths_section(found: dict[str, Any]) -> str:
  """Where λ leads, by steps and loss, for docs/results_trained.md."""
  losses = {key.split(', ')[1] for key in found['rows']}
  text = (
    f'From a network that was fine-tuned as in [Caltech-101](#caltech-101) at '
    f"{found['image_size']} pixels, NOSE's attention layers "
    f'{layers(found["layers"])} go in some steps of '
    f'{found["recipe"]["batch_size"]} images each, half by the soft targets of '
    f'the network that they start from{", or by labels alone" * (len(losses) > 1)}'
    '. The difference is to '
    '`dense` with the same steps, loss and learning rate, with the paired 95% '
    'interval over the test images; one seed.'
  )
  rows = []
  for key, row in sorted(found['rows'].items(), key=_place):
    path, loss, steps, rate = key.split(', ')
    rows.append(
      (
        _PATHS[path],
        _LOSSES[loss] if int(steps) else '–',
        steps,
        f'{float(rate):.0e}'.replace('e-0', 'e-') if int(steps) else '–',
        percent(row['top1']),
        '–' if path == 'dense' else difference(row),
        f'{row["speedup"]:.2f}',
      )
    )
  header = (
    'what', 'loss', 'steps', 'learning rate', 'top-1 %', 'difference',
    'times fewer',
  )  # fmt: skip
  return '\n\n'.join(
    [
      text,
      table(header, rows),
      origin('dilution_paths', 'dilution_paths.py', found),
    ]
  )


def _place(item: tuple[str, Any]) -> tuple[Any, ...]:
  """Where a row of `dilution_paths.json` stands."""
  path, loss, steps, rate = item[0].split(', ')
  return (
    [*_LOSSES].index(loss),
    int(steps),
    float(rate),
    [*_PATHS].index(path),
  )


def _rows(found: dict[str, Any], name: str) -> str:
  """Every row, with what it starts from, and where they come from."""
  rows = [
    (
      ROWS[what],
      seed,
      layers(_changed(row)),
      percent(row['before']) if 'before' in row else '–',
      percent(row['top1']),
      difference(row) if 'before' in row else '–',
      f'{row["speedup"]:.2f}',
      f'{row["parameters"] / 1e6:.1f}',
    )
    for seed, what, row in ordered(found)
  ]
  header = (
    'what', 'seed', 'without attention', 'before %', 'top-1 %', 'difference',
    'times fewer', 'M parameters',
  )  # fmt: skip
  return f'{table(header, rows)}\n\n{origin(name, "evidence.py", found)}'


def evidence_rows(found: dict[str, Any]) -> str:
  """The rows of the first page: the first seed."""
  rows = [
    (
      ROWS[name],
      percent(row['top1']),
      difference(row) if 'before' in row else '',
      f'{row["speedup"]:.2f}' if 'before' in row else '1',
    )
    for seed, name, row in ordered(found)
    if seed == '0' and name in _FIRST
  ]
  more = found['recipe']['more_epochs']
  header = (
    f'Caltech-101, fine-tuned at {found["image_size"]} px, {more} further epochs each',
    'top-1 %',
    'difference',
    'speed-up',
  )
  return table(header, rows)


def _changed(row: dict[str, Any]) -> list[int]:
  """The dense network's blocks that have no attention of their own any more."""
  modes = dict(zip(row['kept_blocks'], row['attention_modes'], strict=True))
  return [block for block in range(_DEPTH) if modes.get(block) != 'full']


def difference(row: dict[str, Any]) -> str:
  """In points, with half its interval."""
  change, half = row['change']
  return f'{100 * change:+.2f} ± {100 * half:.2f}'.replace('-', '−')


def ordered(found: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
  """Seed, name and row of what is compared, as in the script."""
  return [
    (key.partition(' ')[0], name, row)
    for name in ROWS
    for key, row in sorted(found['rows'].items())
    if key.partition(' ')[2] == name
  ]


def scenes_table(found: dict[str, Any]) -> str:
  """Segmentation of street scenes, dense and pruned at equal further steps."""
  rows = [
    (
      SCENES[name],
      layers(row.get('removed', ())),
      percent(row['mean_iou']),
      difference(row) if 'change' in row else '–',
      f'{row["speedup"]:.2f}' if 'speedup' in row else '1',
    )
    for name, row in found['rows'].items()
    if name in SCENES
  ]
  text = (
    '## A real backbone, segmentation: CamVid\n\n'
    'DINOv2 ViT-S/14 with the decoder `linear`, 11 classes, whole images at 112 x '
    f'154 pixels, {found["test_images"]} test images, seed {found["seed"]}. The '
    f'dense network has {found["epochs"]} epochs '
    f'(mean IoU {percent(found["rows"]["dense"]["mean_iou"])}%), and every row '
    f'{found["more_epochs"]} further ones from there. The difference, in points, is '
    'to `dense` with them, with the paired 95% interval over the test images.'
  )
  header = (
    'what', 'attention removed', 'mean IoU %', 'difference', 'times fewer',
  )  # fmt: skip
  return '\n\n'.join(
    [text, table(header, rows), origin('camvid', 'camvid.py', found)]
  )
