"""Learning curves: every layer's figures over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from launch.output.pictures.style import ORANGE, WIDTH, percent_axis, styled

_LISTED = 8  # more layers than this are named by a colour bar
_MARKED = 15  # up to so many epochs every one has a marker
_WIDE = 30.0  # values that span such a factor have a logarithmic axis


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: a figure of every layer over the epochs.

    Attributes:
        title: what the figure is.
        epochs: numbers of the epochs (E,), from 1, rising.
        layers: by layer number, from 1, its value in each epoch (E,); what is not finite is left out.
        percent: the values are shares.
        best: the epoch whose weights are kept; None where the panel is not of those epochs.
        chose: that epoch was chosen by the last layer's value here.
    """

    title: str
    epochs: Sequence[int]
    layers: Mapping[int, Sequence[float]]
    percent: bool = False
    best: int | None = None
    chose: bool = False


@styled
def curves(panels: Sequence[Panel], *, title: str, num_layers: int) -> Figure:
    """A chart for each panel, two in a row, with a line per layer from dark (the first) to light (the last).

    Args:
        panels: at least one.
        title: may have several lines.
        num_layers: of the net; layers that have nothing in a panel have no line there.
    """
    rows = math.ceil(len(panels) / 2)
    columns = min(2, len(panels))
    figure = Figure(figsize=(WIDTH, 2.35 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9, x=0.01, ha="left", linespacing=1.4)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    shades = _shades(num_layers)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, shades)
    if num_layers == 1:
        pass
    elif num_layers <= _LISTED:
        handles = [mpl.lines.Line2D([], [], color=shade, label=f"layer {layer}") for layer, shade in shades.items()]
        figure.legend(handles=handles, loc="outside right center")
    else:
        _bar(figure, grid, list(shades.values()))
    return figure


def _shades(num_layers: int) -> dict[int, str]:
    """Colours of the layers; the lightest still stands out on white."""
    shades = np.linspace(0, 0.82, num_layers) if num_layers > 1 else [0.3]
    return {layer: to_hex(mpl.colormaps["viridis"](shade)) for layer, shade in enumerate(shades, start=1)}


def _draw(axes: Axes, panel: Panel, shades: Mapping[int, str]) -> None:
    count, last = len(panel.epochs), max(shades)
    marker = ("o" if count <= _MARKED else "") if count > 1 else "D"
    known: list[float] = []
    for layer, values in panel.layers.items():
        shown = [value if math.isfinite(value) else math.nan for value in values]
        if all(math.isnan(value) for value in shown):
            continue
        known += [value for value in shown if math.isfinite(value)]
        width = 1.1 if count <= 100 else 0.8
        axes.plot(
            panel.epochs, shown, color=shades[layer], marker=marker, markersize=3, linewidth=width, gid=str(layer)
        )
    axes.set_title(panel.title)
    axes.set_xlabel("epoch")
    first, final = panel.epochs[0], panel.epochs[-1]
    axes.set_xlim(first - 0.5, final + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes.grid(axis="y")
    if not known:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color="0.45")
        return
    if panel.percent:
        percent_axis(axes, "", known)
    elif min(known) > 0 and max(known) > _WIDE * min(known):
        axes.set_yscale("log")
        axes.set_ylabel("logarithmic")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if panel.best is not None:
        axes.axvline(panel.best, color=ORANGE, linestyle=":", linewidth=1, zorder=1, gid="best")
        if panel.chose and last in panel.layers:
            value = panel.layers[last][list(panel.epochs).index(panel.best)]
            axes.plot([panel.best], [value], marker="*", markersize=9, color=ORANGE, zorder=5, gid="chosen")


def _bar(figure: Figure, panels: Sequence[Axes], shades: Sequence[str]) -> None:
    count = len(shades)
    norm = BoundaryNorm(np.arange(0.5, count + 1), count)
    bar = figure.colorbar(ScalarMappable(norm, ListedColormap(shades)), ax=panels, aspect=30, pad=0.02)
    step = math.ceil(count / 16)
    bar.set_ticks(list(range(1, count + 1, step)))
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    bar.set_label("layer")
