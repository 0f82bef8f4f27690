"""Pictures: what is drawn is what was given, and a reader can tell its parts apart. Files of both kinds are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from launch.bench.figures import Device, Figures
from launch.bench.picture import draw as draw_bench
from launch.output import pictures as draw
from launch.output.pictures import Classes, Panel
from launch.output.pictures.matrices import DIAGONAL
from launch.output.pictures.plane import COLOURS
from launch.output.timeline import Step, Window

pytestmark = pytest.mark.pictures

# ---------------------------------------------------------------------------------------------------------------------
# Colours

# Of linear RGB, as seen by readers who lack one kind of cones (Machado et al. 2009, severity 1).
_SIGHT = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def cielab(colours: Sequence[Any], sight: str = "all cones") -> NDArray[np.float64]:
    """L*, a*, b* under D65 (N, 3)."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(_SIGHT[sight]).T, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = (seen @ np.array(to_xyz).T / [0.95047, 1.0, 1.08883]).T
    f = [np.where(v > (6 / 29) ** 3, np.cbrt(v), v / (3 * (6 / 29) ** 2) + 4 / 29) for v in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], axis=1)


def least_distance(colours: Sequence[Any], sight: str) -> float:
    lab = cielab(colours, sight)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return float(distances[~np.eye(len(lab), dtype=bool)].min())


def test_cielab_of_known_colours() -> None:
    known = {
        "#ffffff": (100, 0, 0),
        "#000000": (0, 0, 0),
        "#ff0000": (53.24, 80.09, 67.20),
        "#0000ff": (32.3, 79, -108),
    }
    np.testing.assert_allclose(cielab(list(known)), list(known.values()), atol=0.3)


@pytest.mark.parametrize(("sight", "least"), [("all cones", 50), *((name, 28) for name in list(_SIGHT)[1:])])
def test_ten_classes_have_colours_that_can_be_told_apart(sight: str, least: float) -> None:
    """Classes 3 and 9 were 22 apart, the closest two 19."""
    assert len(COLOURS) == 10
    assert least_distance(COLOURS, sight) > least


def test_ten_classes_stand_out_on_white() -> None:
    assert cielab(COLOURS)[:, 0].max() < 81


@pytest.mark.parametrize("num_classes", [2, 10, 20])
def test_no_two_classes_look_the_same_in_a_plane(num_classes: int) -> None:
    labels = np.arange(60) % num_classes
    places = np.stack([labels, np.arange(60)], axis=1).astype(float)
    (axes,) = draw.scatters([places], ["layer 1"], labels, [f"class {n}" for n in range(num_classes)]).axes
    looks = set()
    for points in axes.collections[1:]:
        assert isinstance(points, PathCollection)
        (label,) = set(np.asarray(points.get_offsets())[:, 0])
        assert points.get_label() == f"class {label:.0f}"
        marker = np.asarray(points.get_paths()[0].vertices).tobytes()
        looks.add((tuple(np.asarray(points.get_facecolor())[0]), marker))
    assert len(looks) == num_classes


# ---------------------------------------------------------------------------------------------------------------------
# Matrices


def some_matrix(limit: float, seed: int) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).uniform(-limit, limit, (10, 10))
    values[2, 7] = limit
    np.fill_diagonal(values, 50.0)
    return values


_TEN = Classes([str(label) for label in range(10)], list(range(9, -1, -1)))


def bars(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def panels_of(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def cells_of(axes: Axes) -> NDArray[np.float64]:
    """The colours of a matrix (rows, columns, 4)."""
    (image,) = axes.images
    values = image.get_array()
    assert values is not None
    return np.asarray(image.to_rgba(values, norm=True))


def test_all_similarity_matrices_of_a_figure_have_one_scale() -> None:
    matrices = [some_matrix(limit, seed) for seed, limit in enumerate((0.1, 0.8, 0.4))]
    figure = draw.similarities(matrices, ["layer 1", "layer 2", "layer 3"], _TEN, label="cosine")
    assert [axes.images[0].get_clim() for axes in panels_of(figure)] == [(-0.8, 0.8)] * 3
    assert len(bars(figure)) == 1


@pytest.mark.parametrize("many", [False, True])
def test_a_class_with_itself_is_grey(many: bool) -> None:
    values = some_matrix(0.4, 0)
    if many:
        figure = draw.similarities([values, values], ["layer 1", "layer 2"], _TEN, label="cosine")
    else:
        figure = draw.similarity(values, _TEN, title="a net", label="cosine")
    for axes in panels_of(figure):
        cells = cells_of(axes)
        grey = np.all(np.isclose(cells[..., :3], to_rgb(DIAGONAL), atol=0.01), axis=2)
        assert (grey == np.eye(10, dtype=bool)).all()
        for text in axes.texts:
            x, y = text.get_position()
            assert x != y or text.get_color() == "0.15", "white on light grey cannot be read"


def test_numbers_in_cells_can_be_read() -> None:
    shares = np.linspace(0, 1, 100).reshape(10, 10)
    values = np.linspace(-1, 1, 100).reshape(10, 10)
    for figure in (
        draw.confusion(shares, _TEN, title="a net"),
        draw.similarity(values, _TEN, title="a net", label="cosine"),
    ):
        (axes,) = panels_of(figure)
        cells = cells_of(axes)
        for text in axes.texts:
            column, row = (int(place) for place in text.get_position())
            paper, ink = cielab([cells[row, column, :3], text.get_color()])[:, 0]
            assert abs(paper - ink) > 35, text.get_text()


# ---------------------------------------------------------------------------------------------------------------------
# Axes


def begins(axes: Axes) -> float:
    return float(axes.get_ylim()[0])


def is_marked(axes: Axes) -> bool:
    return any(line.get_label() == "_cut" for line in axes.lines)


def test_an_axis_of_high_accuracies_is_marked_as_cut() -> None:
    (axes,) = draw.lines({"readout": [0.91, 0.95]}, label="test accuracy", percent=True).axes
    assert begins(axes) == pytest.approx(0.9)
    assert is_marked(axes)
    assert axes.get_ylabel() == "test accuracy\n(axis begins at 90 %)"


@pytest.mark.parametrize("values", [[0.2, 0.95], [0.49, 0.49], [0.0, 0.0]])
def test_an_axis_of_other_accuracies_begins_at_0(values: list[float]) -> None:
    (axes,) = draw.lines({"readout": values}, label="test accuracy", percent=True).axes
    assert begins(axes) == 0
    assert not is_marked(axes)
    assert axes.get_ylabel() == "test accuracy"


def test_every_accuracy_lies_within_its_axis() -> None:
    for low in np.linspace(0, 1, 101):
        values = [float(low), min(1.0, float(low) + 0.013)]
        (axes,) = draw.lines({"readout": values}, label="accuracy", percent=True).axes
        bottom, top = axes.get_ylim()
        assert bottom <= values[0] <= values[1] < top
        assert is_marked(axes) == (bottom > 0)


def test_bars_begin_at_0() -> None:
    (axes,) = draw.margins([0.96, 0.98], [0.4, 0.2]).axes
    assert begins(axes) == 0
    rows = [bench_row("ddp", 568.0), bench_row("cff-1", 659.0)]
    speeds, times = draw_bench("a net", rows).axes
    assert speeds.get_xlim()[0] == times.get_xlim()[0] == 0


def bench_row(name: str, speed: float) -> Figures:
    return Figures(
        name=name,
        title=name,
        family="local",
        source="memory",
        start_seconds=None,
        trouble=None,
        images_per_second=speed,
        low=speed - 5,
        high=speed + 5,
        step_seconds=None,
        to_backprop=None,
        to_serial=None,
        rival=None,
        ideal=None,
        devices=(Device(name="stage 1", shares={"busy": 0.97, "wait_in": 0.03}, step_seconds=None, peak_bytes=1),),
        bytes_per_step=None,
        loss=None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Learning curves


def a_panel(num_epochs: int, num_layers: int, **changed: Any) -> Panel:
    epochs = list(range(1, num_epochs + 1))
    layers = {layer: [layer + 1 / epoch for epoch in epochs] for layer in range(1, num_layers + 1)}
    return Panel(**{"title": "validation loss", "epochs": epochs, "layers": layers, **changed})


def lines_of(axes: Axes) -> dict[str, Any]:
    return {gid: line for line in axes.lines if (gid := line.get_gid()) is not None}


def test_curves_are_the_layers_values() -> None:
    panel = a_panel(5, 3, best=4, chose=True)
    (axes,) = draw.curves([panel], title="a net", num_layers=3).axes
    lines = lines_of(axes)
    for layer in (1, 2, 3):
        assert list(lines[str(layer)].get_xdata()) == [1, 2, 3, 4, 5]
        assert list(lines[str(layer)].get_ydata()) == panel.layers[layer]
    assert lines["best"].get_xdata()[0] == 4
    assert (list(lines["chosen"].get_xdata()), list(lines["chosen"].get_ydata())) == ([4], [3.25])
    assert axes.get_title() == "validation loss"


def test_a_panel_that_did_not_choose_the_epoch_has_its_line_alone() -> None:
    (axes,) = draw.curves([a_panel(5, 2, best=4)], title="a net", num_layers=2).axes
    assert {"1", "2", "best"} == set(lines_of(axes))


def test_losses_that_are_no_numbers_leave_a_gap() -> None:
    layers = {1: [1.0, math.nan, 3.0], 2: [math.inf, 2.0, 1.0], 3: [math.nan] * 3}
    (axes,) = draw.curves([a_panel(3, 3, layers=layers)], title="a net", num_layers=3).axes
    lines = lines_of(axes)
    np.testing.assert_array_equal(lines["1"].get_ydata(), [1, math.nan, 3])
    np.testing.assert_array_equal(lines["2"].get_ydata(), [math.nan, 2, 1])
    assert "3" not in lines


def test_a_panel_without_a_number_says_so() -> None:
    panel = a_panel(2, 1, layers={1: [math.nan, math.inf]})
    (axes,) = draw.curves([panel], title="a net", num_layers=1).axes
    assert [text.get_text() for text in axes.texts] == ["no finite value"]


@pytest.mark.parametrize(("losses", "scale"), [([9.0, 0.2], "log"), ([2.3, 0.2], "linear"), ([9.0, -0.2], "linear")])
def test_losses_of_many_sizes_have_a_logarithmic_axis(losses: list[float], scale: str) -> None:
    (axes,) = draw.curves([a_panel(2, 1, layers={1: losses})], title="a net", num_layers=1).axes
    assert axes.get_yscale() == scale


def test_a_single_epoch_is_seen_and_many_are_no_row_of_dots() -> None:
    for num_epochs, marker in ((1, "D"), (15, "o"), (600, "")):
        (axes,) = draw.curves([a_panel(num_epochs, 1)], title="a net", num_layers=1).axes
        assert lines_of(axes)["1"].get_marker() == marker


@pytest.mark.parametrize("num_layers", [1, 2, 8, 9, 16])
def test_layers_are_named_and_shaded_in_order(num_layers: int) -> None:
    figure = draw.curves([a_panel(3, num_layers)], title="a net", num_layers=num_layers)
    listed = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert listed == ([f"layer {n}" for n in range(1, num_layers + 1)] if 1 < num_layers <= 8 else [])
    assert len(bars(figure)) == (num_layers > 8)
    lines = lines_of(figure.axes[0])
    light = cielab([lines[str(layer)].get_color() for layer in range(1, num_layers + 1)])[:, 0]
    assert (np.diff(light) > 0).all()
    assert light[-1] < 85, "stands out on white"


@pytest.mark.parametrize("num_epochs", [1, 2, 600])
@pytest.mark.parametrize("num_layers", [1, 4, 16])
def test_epochs_are_whole_numbers(num_epochs: int, num_layers: int, tmp_path: Path) -> None:
    figure = draw.curves([a_panel(num_epochs, num_layers)] * 3, title="a net", num_layers=num_layers)
    draw.write(figure, tmp_path / "curves.png")
    for axes in figure.axes[:3]:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks
        assert all(tick == round(tick) and tick >= 1 for tick in ticks)


# ---------------------------------------------------------------------------------------------------------------------
# The schedule


def a_step(batch: int, since: float, begin: float, end: float, **waits: float) -> Step:
    return Step(batch, since, begin, end, {"wait_in": 0.0, "sync": 0.0, "wait_out": 0.0, "other": 0.0, **waits})


def a_window() -> Window:
    first = [a_step(0, 100.0, 100.0, 100.4), a_step(1, 100.4, 100.5, 100.9, wait_out=0.1)]
    second = [a_step(0, 100.0, 100.3, 100.6, wait_in=0.3), a_step(1, 100.6, 100.95, 101.0, wait_in=0.35)]
    later = a_step(2, 101.0, 101.5, 101.6, sync=0.5)  # beyond the window's end
    return Window(0, True, 100.0, 101.0, [first, [*second, later]])


def collections(axes: Axes) -> dict[str, list[Any]]:
    return {
        str(found.get_gid()): [path.vertices for path in found.get_paths()]
        for found in axes.collections
        if isinstance(found, PolyCollection | LineCollection)
    }


def test_boxes_waits_and_arrows_are_where_they_were_measured() -> None:
    (axes,) = draw.timeline([a_window()], ["the beginning"], ["stage 1", "stage 2"], title="a net").axes
    drawn = collections(axes)

    def spans(gid: str) -> list[tuple[float, float, int]]:
        return [
            (round(min(path[:, 0])), round(max(path[:, 0])), round(float(np.mean(path[:4, 1])))) for path in drawn[gid]
        ]

    assert spans("boxes")[:4] == [(0, 400, 0), (500, 900, 0), (300, 600, 1), (950, 1000, 1)]
    assert spans("wait_in") == [(0, 300, 1), (600, 950, 1)]
    assert spans("wait_out") == [(400, 500, 0)]
    assert [(round(a[0]), round(b[0])) for a, b in drawn["arrows"]] == [(300, 300), (900, 950)]
    assert {a[1] < b[1] for a, b in drawn["arrows"]} == {True}, "from stage 1 to stage 2"
    assert axes.get_xlim() == (0, 1000)
    assert axes.get_xlabel() == "ms"
    assert [text.get_text() for text in axes.texts] == ["batch 1", "batch 2", "batch 1", "2"]


def test_only_waiting_that_is_seen_is_explained() -> None:
    figure = draw.timeline([a_window()], ["the beginning"], ["stage 1", "stage 2"], title="a net")
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["computing, copying", "waiting for input", "waiting to send"]


@pytest.mark.parametrize("num_stages", [1, 2, 16, 64])
def test_a_row_per_stage_on_a_page(num_stages: int, tmp_path: Path) -> None:
    stage = [a_step(batch, 100.0 + batch, 100.1 + batch, 101.0 + batch, wait_in=0.1) for batch in range(9)]
    window, names = Window(0, False, 100.0, 109.0, [stage] * num_stages), [f"stage {n}\nl" for n in range(num_stages)]
    figure = draw.timeline([window] * 2, ["a", "b"], names, title="a net")
    draw.write(figure, tmp_path / "pipeline.png")
    assert max(figure.get_size_inches()) < 14
    figure.draw_without_rendering()  # letters were measured in the file's pixels
    for axes in figure.axes:
        assert len(collections(axes)["boxes"]) == 9 * num_stages
        assert axes.get_xlabel() == "s"
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes)), "names overlap"


# ---------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize(("vector", "head"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_vector_file_lies_beside_the_png_and_is_the_same_again(tmp_path: Path, vector: Any, head: bytes) -> None:
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        draw.write(draw.lines({"a": [0.1, 0.2]}, label="y"), tmp_path / name / "picture.png", vector)
        assert {file.name for file in (tmp_path / name).iterdir()} == {"picture.png", f"picture.{vector}"}
        written.append((tmp_path / name / f"picture.{vector}").read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(head)


def test_a_file_that_cannot_be_written_whole_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(figure: Figure, file: Path, **_: Any) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space"):
        draw.write(Figure(), tmp_path / "picture.png", "pdf")
    assert not list(tmp_path.iterdir())
