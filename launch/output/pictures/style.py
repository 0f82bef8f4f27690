"""What all pictures share: fonts, colours that colour-blind readers can tell apart, sizes, names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Numbers = NDArray[Any]
Vector = Literal["pdf", "svg"]

_DPI = 200
WIDTH = 7.2  # inches, of a page's text
COLUMN = 3.5  # inches, of one column
MANY = 20  # more classes than this are not told apart by colour
_LONGEST = 32  # letters of a class's name
_LETTER = 0.061  # inches of a letter of 7.5 points, in the mean
_STYLE: Any = {  # the keys have a type of their own in newer versions of matplotlib
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a class name may hold a $
}
_FILES: Any = {
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3, and text can be searched
    "svg.hashsalt": "localpipe",  # names of elements, the same every time
}
_CUT_ABOVE = 0.5  # shares that are all above this are drawn on an axis that does not begin at 0
# Of Okabe and Ito's palette.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.45"
WAITING = {  # what a device does while it does not compute
    "wait_in": ("waiting for input", "#56B4E9"),
    "wait_out": ("waiting to send", "#E69F00"),
    "sync": ("label embeddings", "#F0E442"),
    "other": ("other", "0.8"),
}

_P = ParamSpec("_P")


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """A function that draws in the common style, whatever the process's settings of matplotlib."""

    @wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def write(figure: Figure, file: Path, *vectors: Vector) -> None:
    """Writes a figure as PNG to ``file``, and beside it as ``vectors``; the same bytes for the same figure.

    A file is there whole or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    _write(figure, file, dpi=_DPI, format="png", metadata={"Software": None})
    for vector in vectors:
        figure.set_layout_engine("none")  # what was laid out for the PNG stays where it is
        undated = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "svg": {"Date": None}}
        _write(figure, file.with_suffix(f".{vector}"), dpi=_DPI, format=vector, metadata=undated[vector])


def _write(figure: Figure, file: Path, **how: Any) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        with mpl.rc_context(_FILES):
            figure.savefig(part, **how)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def percent_axis(axes: Axes, label: str, values: Sequence[float]) -> None:
    """Makes the vertical axis that of shares, in per cent: from 0, or where they are all large from a marked cut."""
    low, high = min(values), max(values)
    if low < _CUT_ABOVE:
        begin = 0.0
    else:
        step = 0.05 if high - low > 0.05 else 0.01
        begin = step * math.floor((low - 0.2 * step) / step)
    axes.set_ylim(begin, high + 0.06 * max(high - begin, 0.01))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    axes.set_ylabel(label)
    if begin > 0:
        mark_cut(axes, f"{100 * begin:.4g} %")


def mark_cut(axes: Axes, begin: str) -> None:
    """Marks a vertical axis that does not begin at 0: two strokes across it, and a note that says where it begins."""
    stroke: Any = [(-1, -0.5), (1, 0.5)]
    axes.plot(
        [0, 0],
        [0.03, 0.06],
        transform=axes.transAxes,
        linestyle="none",
        marker=stroke,
        markersize=7,
        color="black",
        markeredgewidth=0.8,
        clip_on=False,
        label="_cut",
    )
    axes.set_ylabel(f"{axes.get_ylabel()}\n(axis begins at {begin})")


def layer_axis(axes: Axes, num_layers: int) -> None:
    """Makes the horizontal axis that of the layers, counted from 1."""
    axes.set_xlim(0.7, num_layers + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.set_xlabel("layer")


def panel_grid(
    count: int, *, side: float, names: Sequence[str] = (), title_lines: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` square panels, three in a row or, of more than nine, four; as even as can be.

    There is room for ``names`` to the left of the first column, and below every column; and above each for its title.
    """
    most = 3 if count <= 9 else 4
    side = side if most == 3 else side * 0.8
    rows = math.ceil(count / most)
    columns = math.ceil(count / rows)
    room = max((len(name) for name in names), default=0) * _LETTER * 0.8
    # Where the last row has gaps, the row above it has names as well.
    named_rows = 2 if count < rows * columns and rows > 1 else 1
    size = (side * columns + room + 1.1, (side + 0.1 + 0.15 * title_lines) * rows + room * named_rows + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    every = list(grid.flat)
    for axes in every[count:]:
        axes.set_axis_off()
    return figure, every[:count]


def shown(name: str, width: float | None = None) -> str:
    """A class's name as people write it, cut to so many inches of small print, or where it is very long."""
    text = name.replace("_", " ")
    most = _LONGEST if width is None else min(_LONGEST, int(width / _LETTER))
    return text if len(text) <= most else text[: most - 1] + "…"
