"""The pictures: readable, labelled, told apart without colour, and the same in every run."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="NOT TESTED: pip install 'torch-parity[report]'")

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from fixtures.pictures import style
from fixtures.pictures.activations import activation_curves
from fixtures.pictures.bars import probability_bars
from fixtures.pictures.comparisons import setting_study
from fixtures.pictures.filters import as_images, first_layer
from fixtures.pictures.fits import fitted_curves
from fixtures.pictures.losses import envelope, loss_curves, loss_study, watched_curves
from fixtures.pictures.regions import decision_regions, grid
from fixtures.pictures.sheets import image_sheet
from fixtures.pictures.tables import results_table
from fixtures.studies.drawing import probabilities, turning_epoch
from fixtures.workloads import History

pytestmark = pytest.mark.slow  # draws and opens pictures: run by -m slow

RNG = np.random.default_rng(0)
LOSSES = np.exp(-np.arange(30) / 5.0)
NEAR = LOSSES + RNG.choice([0.0, 1e-16, -1e-16], 30)
POINTS, LABELS = RNG.standard_normal((40, 2)), np.arange(40) % 2
IMAGES, TRUTH = RNG.random((7, 8, 8)), np.arange(7)
WRONG = np.array([0, 1, 2, 0, 4, 5, 6])
DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Ankle boot")
HUGE = [1.0, 1e300, np.inf, np.nan]
X = np.linspace(-1, 1, 50)


def half_plane(points):
    return 1 / (1 + np.exp(-points[:, 0]))


def drawn():
    chances = probabilities(RNG.standard_normal((5, 7)))
    watched = {"train": [(1, 2.0, 0.5), (2, 1.0, 0.6)], "test": [(1, 2.1, 0.4), (2, 1.5, 0.5)]}
    return {
        "loss": loss_curves("loss", NEAR, LOSSES, 1e-10),
        "overflow": loss_curves("overflow", HUGE, HUGE),
        "envelope": envelope("envelope", np.abs(NEAR - LOSSES), np.full(30, 1e-15)),
        "study": loss_study("study", {"0.1": (NEAR, LOSSES), "0.01": (LOSSES, NEAR)}, "lr"),
        "watched": watched_curves("watched", watched, watched, 2),
        "regions": decision_regions("r", POINTS, LABELS, (half_plane,) * 2, DIGITS, 0.1, 0.5),
        "fits": fitted_curves("fits", X, X**2, X, {"step 0": (X, X), "step 9": (X**2, X**2)}),
        "digits": image_sheet("digits", IMAGES, TRUTH, (WRONG, TRUTH), DIGITS),
        "clothes": image_sheet("clothes", IMAGES, TRUTH, (WRONG, TRUTH), CLOTHES),
        "bars": probability_bars("bars", IMAGES[:5], TRUTH[:5], (chances, chances), CLOTHES),
        "weights": first_layer("w", [RNG.standard_normal((6, 3072))] * 2),
        "activations": activation_curves("a", X, {"Tanh": (np.tanh(X),) * 2, "ReLU": (X, X)}),
        "settings": setting_study("s", {"loss": {"1": (0.1, 0.1), "2": (9.0, 9.0)}}, "width"),
        "table": results_table("t", ("what", "loss"), [("a configuration", "0.1"), ("b", "2")]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def pictures():
    return drawn()


KINDS = ("loss", "overflow", "envelope", "study", "watched", "regions", "fits", "digits", "clothes",
         "bars", "weights", "activations", "settings", "table")  # fmt: skip
CURVES = ("loss", "overflow", "envelope", "study", "watched", "fits", "activations", "settings")


def texts(figure):
    """All text that is shown except tick labels, which exist beyond an axis's limits too."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    ticks = {
        label
        for axes in figure.findobj(Axes)
        for axis in (axes.xaxis, axes.yaxis)
        for label in [*axis.get_ticklabels(which="both"), axis.get_offset_text()]
    }
    found = set(figure.findobj(Text)) - ticks
    return [t for t in found if t.get_visible() and t.get_text().strip()], canvas.get_renderer()


@pytest.mark.parametrize("kind", KINDS)
def test_all_text_lies_inside_and_is_large_enough(kind, pictures):
    figure = pictures[kind]
    found, renderer = texts(figure)
    assert found
    for text in found:
        box, whole, said = text.get_window_extent(renderer), figure.bbox, text.get_text()
        assert box.x0 >= whole.x0 - 1, f"{said!r} is cut on the left"
        assert box.x1 <= whole.x1 + 1, f"{said!r} is cut on the right"
        assert box.y0 >= whole.y0 - 1, f"{said!r} is cut below"
        assert box.y1 <= whole.y1 + 1, f"{said!r} is cut above"
        assert text.get_fontsize() >= 6, f"{said!r} is too small to read"


@pytest.mark.parametrize("kind", [*CURVES, "regions"])
def test_axes_are_labelled(kind, pictures):
    axes = [axis for axis in pictures[kind].axes if axis.get_label() != "<colorbar>"]
    assert any(axis.get_ylabel() for axis in axes)
    assert axes[-1].get_xlabel(), "the lowest panel says what runs along it"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_as_png_and_svg(kind, pictures, tmp_path):
    assert style.save(pictures[kind], tmp_path, kind) == [f"{kind}.png", f"{kind}.svg"]
    assert ElementTree.parse(tmp_path / f"{kind}.svg").getroot().tag.endswith("svg")
    assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file stays"


def test_the_same_picture_is_the_same_file(tmp_path):
    written = []
    for name in ("one", "two"):
        style.save(loss_curves("loss", NEAR, LOSSES, 1e-10), tmp_path, name)
        written.append((tmp_path / f"{name}.svg").read_bytes())
    assert written[0] == written[1]


def test_the_sides_differ_without_colour():
    assert style.MINE["linestyle"] != style.THEIRS["linestyle"]
    assert len({str(dash) for dash in style.DASHES}) == len(style.SERIES)


def test_colours_are_told_apart_by_colour_blind_eyes():
    # Viénot, Brettel and Mollon 1999: red and green cones' shares merged, seen by dichromats
    for one, other in itertools.combinations((style.MINE["color"], style.THEIRS["color"]), 2):
        seen = [_without_red_green(to_rgb(colour)) for colour in (one, other)]
        assert np.abs(seen[0] - seen[1]).max() > 0.25
    right, wrong = (_without_red_green(to_rgb(c)) for c in (style.GREEN, style.RED))
    assert np.abs(right - wrong).max() > 0.25


def _without_red_green(colour):
    red, green, blue = np.asarray(colour) ** 2.2
    return np.array([0.11238 * red + 0.88762 * green, 0.00401 * red - 0.00401 * green + blue]) ** (
        1 / 2.2
    )


def test_a_sheet_marks_right_and_wrong(pictures):
    titles = [axis.get_title() for axis in pictures["digits"].axes]
    assert titles.count("0 | 3 ✗") == 1
    assert sum("✓" in title for title in titles) == 13
    sides = [part.get_suptitle() for part in pictures["digits"].subfigs]
    assert sides == ["by hand (NumPy): 6 of 7 right", "torch: 7 of 7 right"]
    frames = {
        axis.spines["left"].get_linewidth() for axis in pictures["digits"].axes if axis.get_title()
    }
    assert len(frames) == 2, "wrong ones have a thicker frame"


def test_loss_curves_say_how_often_both_are_equal(pictures):
    top, bottom = pictures["loss"].axes
    equal = int(np.sum(NEAR == LOSSES))
    assert f"{equal} of 30 steps" in bottom.get_title(loc="left")
    assert bottom.get_yscale() == "log"
    sides = {line.get_label(): line.get_ydata() for line in top.get_lines()}
    assert np.array_equal(sides["by hand (NumPy)"], NEAR)
    assert np.array_equal(sides["torch"], LOSSES)
    above = pictures["overflow"].axes[1].get_title(loc="left")
    assert above == "equal to the last bit at 4 of 4 steps; beyond 1e+150 at 3"


def test_a_loss_that_runs_through_all_magnitudes_can_be_drawn(tmp_path):
    """Ticks beyond the largest number would be infinite, and matplotlib stops at them."""
    diverging = 10.0 ** np.arange(0, 308, 0.2)
    figure = loss_curves("d", diverging, diverging * (1 + 1e-14), 1e-10 * diverging[-1])
    assert style.save(figure, tmp_path, "diverging") == ["diverging.png", "diverging.svg"]


def test_a_loss_that_vanishes_keeps_its_place(tmp_path):
    """On a logarithmic axis a 0 pushes all else out of the picture."""
    vanished, mild = (0.0, 0.0), (2.1, 2.1)
    study = setting_study("e", {"loss": {"summed": vanished, "averaged": mild}})
    far = setting_study("e", {"loss": {"none": vanished, "least": (1e-12, 1e-12), "most": (9, 9)}})
    falling = np.concatenate([np.geomspace(1e6, 1, 20), np.zeros(5)])
    curves = loss_curves("e", falling, falling)
    for figure in (study, far, curves):
        FigureCanvasAgg(figure).draw()
    for axis, values in ((study.axes[0], [0.0, 2.1]), (far.axes[0], [0.0, 1e-12, 9.0])):
        low, high = axis.get_xlim()
        places = axis.transAxes.inverted().transform(
            axis.transData.transform([(v, 0.0) for v in values])
        )[:, 0]
        assert low < 0 < high
        assert (places >= 0).all()
        assert (places <= 1).all()
        assert places[-1] - places[0] > 0.5
    assert curves.axes[0].get_yscale() == "symlog"


def test_regions_count_differing_points():
    figure = decision_regions(
        "r", POINTS, LABELS, (half_plane, lambda p: 1 - half_plane(p)), DIGITS, 0.1, 0.5
    )
    count = len(grid(POINTS, 0.1, 0.5)[0])
    said = [text.get_text() for text in figure.texts if "differ" in text.get_text()]
    assert said == [f"{count:,} of {count:,} grid points differ"]


def test_grid_margins():
    x = np.array([[0.0, 0.0], [10.0, 2.0]])
    points, shape = grid(x, 0.5, 0.5)
    assert points.min(axis=0).tolist() == [-0.5, -0.5]
    assert len(points) == shape[0] * shape[1]
    assert grid(x, 0.1)[0].min(axis=0).tolist() == [-1.0, -0.2]


def test_weights_become_images():
    weight = RNG.standard_normal((2, 3072))
    images = as_images(weight)
    assert images.shape == (2, 32, 32, 3)
    channel = weight.reshape(2, 32, 32, 3)[1, :, :, 2]
    left = channel - np.percentile(channel, 1)
    assert np.array_equal(images[1, :, :, 2], np.clip(left / np.percentile(left, 99), 0, 1))
    assert np.array_equal(as_images(np.zeros((1, 3072))), np.zeros((1, 32, 32, 3)))


def test_names_of_files(tmp_path):
    assert style.file_name("SGD + momentum, lr 0.1") == "sgd-momentum-lr-0-1"
    assert style.file_name("R² of 2-20-20-1 tanh") == "r2-of-2-20-20-1-tanh"
    figure, _ = style.canvas()
    with pytest.raises(ValueError, match=r"cannot be named '../up'"):
        style.save(figure, tmp_path, "../up")


def test_the_turn_is_where_the_test_loss_is_lowest():
    history = History("x", "numpy", "float64", 0, 3)
    assert turning_epoch(history) is None
    losses = enumerate((2.0, 1.0, 3.0), start=1)
    history.watched = {"train": [(1, 0.1, None)], "test": [(e, loss, None) for e, loss in losses]}
    assert turning_epoch(history) == 2
