"""Features in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from launch.output.pictures.style import MANY, Numbers, panel_grid, shown, styled

_MARKERS = "os^D"  # of neighbours in the palette
# Ten colours searched for by the least distance of any two in CIELAB: 51, and 29 to readers who lack one kind of cones
# (Machado et al. 2009. tests/test_pictures.py measures both.
COLOURS = (
    "#0201f4",
    "#f9bd03",
    "#dd540c",
    "#09dec7",
    "#661685",
    "#c7ca86",
    "#19491f",
    "#f20dff",
    "#668eb7",
    "#ba636d",
)


@styled
def scatters(clouds: Sequence[Numbers], titles: Sequence[str], labels: Numbers, names: Sequence[str]) -> Figure:
    """Points (N, 2) of every layer, coloured by label; of more than 20 classes, ten are, the rest is grey."""
    figure, panels = panel_grid(len(clouds), side=2.2)
    present = np.unique(labels)
    coloured = present if len(present) <= MANY else present[np.linspace(0, len(present) - 1, 10).astype(int)]
    size = 8 if len(labels) <= 500 else 5 if len(labels) <= 1500 else 2.5
    for axes, points, title in zip(panels, clouds, titles, strict=True):
        others = ~np.isin(labels, coloured)
        axes.scatter(points[others, 0], points[others, 1], s=size, color="0.85", linewidths=0)
        for number, label in enumerate(coloured):
            mine = labels == label
            marker = _MARKERS[number // len(COLOURS) if len(coloured) > len(COLOURS) else number % len(_MARKERS)]
            axes.scatter(
                points[mine, 0],
                points[mine, 1],
                s=size,
                color=COLOURS[number % len(COLOURS)],
                marker=marker,
                linewidths=0,
                label=shown(names[label]),
            )
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("0.8")
    handles, entries = panels[0].get_legend_handles_labels()
    heading = f"{len(coloured)} of {len(present)} classes" if len(coloured) < len(present) else None
    figure.legend(handles, entries, loc="outside right center", markerscale=2, handletextpad=0.1, title=heading)
    return figure
