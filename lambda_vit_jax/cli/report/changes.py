"""The part of the page about test images: what changed, and segmentations."""

import itertools

from lambda_vit_jax.cli.report import html, tables
from lambda_vit_jax.cli.report.html import Cell, number
from lambda_vit_jax.cli.report.results import Results


def section(results: Results) -> list[str]:
  """Images that dense and pruned take differently, and classes that changed."""
  if results.score == 'mean_iou':
    return _segmentation(results)
  row = results.evaluation.get('pruned', {})
  changed = row.get('changed')
  if changed is None:
    return []
  lost, gained = changed['lost'], changed['gained']
  images = (
    f'{row["num_images"]:,} test images'
    if 'num_images' in row
    else 'the test images'
  )
  said = f'Dense and pruned are right on the same ones of {images}.'
  if lost or gained:
    said = (
      f'Of {images}, {lost:,} that the dense model gets right are lost in the '
      f'pruned one, and {gained:,} that it gets wrong are gained.'
    )
  parts = ['<h2>What changed</h2>', f'<p>{said}</p>']
  there = {picture.index: picture for picture in results.pictures}
  tiles = [
    html.picture(
      there[image['index']].png,
      there[image['index']].size,
      f'Test image {image["index"]}: is {image["label"]}; dense says '
      f'{image["before"]}, pruned {image["after"]}.',
      'small',
    )
    for image in changed['images']
    if image['index'] in there
  ]
  if tiles:
    parts.append(f'<div class="tiles">{"".join(tiles)}</div>')
  if changed['classes']:
    columns = ('class', 'test images', 'lost', 'gained')
    rows = [
      tuple(
        Cell(str(row[key]), row[key])
        for key in ('class', 'images', 'lost', 'gained')
      )
      for row in changed['classes']
    ]
    parts += [
      '<h3>Classes that changed most</h3>',
      html.table(columns, rows, 'Classes that changed most'),
    ]
  return parts


def _segmentation(results: Results) -> list[str]:
  """Pictures of test images, and the scores per class."""
  evaluation = results.evaluation
  models = [name for name in tables.models(results) if name in evaluation]
  each = itertools.zip_longest(
    *(evaluation[name].get('iou', ()) for name in models)
  )
  rows = [
    (str(k), *(number(value) for value in values))
    for k, values in enumerate(each)
  ]
  pictures = [
    html.picture(
      picture.png,
      picture.size,
      f'Test image {picture.index}: image, truth, dense, pruned.',
    )
    for picture in results.pictures
  ]
  return [
    '<h2>Segmentation</h2>',
    *pictures,
    html.numbers(
      'Intersection over union of each class', ('class', *models), rows
    ),
  ]
