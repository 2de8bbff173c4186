"""Plots are pictures in a notebook, and can be drawn in axes of one's own."""

import io

import matplotlib.figure
import pytest

from lambda_vit_jax.analysis.profile import EntropyProfile
from lambda_vit_jax.analysis.spectrum import Spectrum
from lambda_vit_jax.core import figures
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.selection.record import Round, Selection

PROFILE = EntropyProfile(
  attention_entropy=(1.0, None, 3.0),
  mlp_entropy=(2.0, 2.5, 3.0),
  correlation=None,
  cosine_similarity=(0.5, None, 0.7),
  dead_channels={},
  num_images=4,
)
SPECTRUM = Spectrum((0.0, 1.0), ((0.0, -1.0), (0.0, -2.0)), (4, 4), 4)
SELECTION = Selection(
  'transfer_entropy', 'logits', 'signed', 130, -3.5
).with_round(Round({0: 0.5, 1: 0.25}, 1, 1.0, {0: (0.4, 0.6), 1: (0.2, 0.3)}))

each = pytest.mark.parametrize(
  'shown', [PROFILE, SPECTRUM, SELECTION], ids=lambda s: type(s).__name__
)


def own_axes(columns=1):
  figure = matplotlib.figure.Figure()
  return figure, figure.subplots(1, columns)


@each
def test_jupyter_shows_a_picture(shown):
  """As text, a figure is only `<Figure size 640x360 with 1 Axes>`."""
  from IPython.core.formatters import DisplayFormatter

  data, _ = DisplayFormatter().format(shown.plot())
  assert data['image/png'].startswith(b'\x89PNG')


@each
def test_a_plot_is_drawn_in_the_axes_given(shown):
  figure, axes = own_axes()
  assert shown.plot(ax=axes) is figure
  assert axes.lines
  assert axes.get_xlabel()
  # A second scale of the profile's, on the same place.
  places = {tuple(other.get_position().bounds) for other in figure.axes}
  assert len(places) == 1


def test_a_spectrum_takes_two_axes():
  figure, axes = own_axes(columns=2)
  assert SPECTRUM.plot(SPECTRUM, ax=axes) is figure
  assert [len(each.lines) for each in axes] == [2, 2]
  new = SPECTRUM.plot().axes
  assert [len(each.lines) for each in new] == [1, 1]


def test_pyplot_does_not_keep_the_figures():
  import matplotlib.pyplot as plt

  before = plt.get_fignums()
  SELECTION.plot()
  assert plt.get_fignums() == before


@each
@pytest.mark.parametrize('wrong', ['x', (), matplotlib.figure.Figure()])
def test_what_are_no_axes_is_one_line(shown, wrong):
  with pytest.raises(UsageError, match=r'^plot\(ax=<.*>\): must be axes'):
    shown.plot(ax=wrong)


def test_axes_are_no_other_spectrum():
  with pytest.raises(UsageError, match=r'give axes as plot\(ax=…\)'):
    SPECTRUM.plot(own_axes()[1])


@pytest.mark.parametrize(
  'name, shown',
  [
    ('transfer_entropy', 'transfer entropy'),
    ('\x1b[2J$x^2$', r'\x1b[2J\$x^2\$'),
    ('漢\n', r'\u6f22\n'),
  ],
)
def test_a_name_of_any_file_can_label_an_axis(name, shown):
  """A missing glyph would be a warning, and a formula an error."""
  assert figures.axis_label(name) == shown
  figure, (axes,) = figures.axes_to_draw_in()
  axes.set_ylabel(figures.axis_label(name))
  figure.savefig(io.BytesIO(), format='svg')
