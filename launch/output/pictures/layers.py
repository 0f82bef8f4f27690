"""Figures of every layer: lines, and bars with margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from launch.output.pictures.style import (
    BLUE,
    COLUMN,
    GREEN,
    ORANGE,
    Numbers,
    layer_axis,
    panel_grid,
    percent_axis,
    styled,
)

_BINS = 40  # of a histogram


@styled
def lines(series: Mapping[str, Sequence[float | None]], *, label: str, percent: bool = False) -> Figure:
    """A line per series over the layers: None where a layer has no such number.

    Args:
        series: values of every layer by what they are.
        label: of the vertical axis.
        percent: the values are shares; where all are large the axis begins at a marked cut.
    """
    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    axes = figure.subplots()
    looks = zip((BLUE, ORANGE, GREEN), ("-", "--", ":"), ("o", "s", "^"), strict=True)
    for (name, values), (colour, dashes, marker) in zip(series.items(), looks, strict=False):
        positions = [position for position, value in enumerate(values, start=1) if value is not None]
        shown = [value for value in values if value is not None]
        axes.plot(positions, shown, color=colour, linestyle=dashes, marker=marker, label=name)
    layer_axis(axes, max(len(values) for values in series.values()))
    axes.set_ylabel(label)
    axes.grid(axis="y")
    if percent:
        known = [value for values in series.values() for value in values if value is not None]
        percent_axis(axes, label, known)
    else:
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(loc="best")
    return figure


@styled
def margins(inside: Sequence[float], margin: Sequence[float]) -> Figure:
    """Share of positive pairs inside the margin, a bar per layer that is named with its margin."""
    figure = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(1, len(inside) + 1)
    bars = axes.bar(positions, inside, width=0.62, color=BLUE)
    axes.bar_label(bars, [f"{share:.0%}" if share >= 0.005 else f"{share:.1%}" for share in inside], padding=2)
    axes.set_xticks(positions, [f"{position}\nm = {m:.2f}" for position, m in zip(positions, margin, strict=True)])
    axes.set_xlabel("layer")
    axes.set_ylabel("positive pairs inside the margin")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(0, max(0.01, *inside) * 1.15)
    axes.grid(axis="y")
    return figure


@styled
def goodness(layers: Sequence[tuple[Numbers, Numbers]], titles: Sequence[str]) -> Figure:
    """How often each goodness occurs, a panel per layer: with images' own labels, and with others.

    Args:
        layers: of every layer both kinds (N,), (M,). A panel ends where one value in a hundred of either is larger.
    """
    figure, panels = panel_grid(len(layers), side=2.0)
    for axes, kinds, title in zip(panels, layers, titles, strict=True):
        most = max(float(np.quantile(values, 0.99)) for values in kinds)
        edges = np.linspace(0, most if most > 0 else 1.0, _BINS + 1)
        for values, name, colour in zip(kinds, ("own label", "other label"), (BLUE, ORANGE), strict=True):
            shares = np.histogram(values, edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, alpha=0.35, color=colour)
            axes.stairs(shares, edges, color=colour, linewidth=1.2, label=name)
        axes.set_title(title)
        axes.set_xlabel("goodness")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure
