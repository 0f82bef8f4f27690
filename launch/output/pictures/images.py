"""Images: attention maps over them, and anchors with the similarities of their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from launch.output.pictures.style import BLUE, GREY, ORANGE, WIDTH, Numbers, layer_axis, shown, styled


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image with the maps of its two likeliest classes.

    Attributes:
        image: (H, W) or (H, W, 3), 0 … 1.
        label: name of its class.
        guesses: names of the likeliest classes.
        maps: for each guess and layer (H, W).
    """

    image: Numbers
    label: str
    guesses: Sequence[str]
    maps: Sequence[Sequence[Numbers]]


@styled
def attention(sections: Mapping[str, Sequence[Example]], layers: Sequence[str]) -> Figure:
    """Rows of an image and, for each of its likeliest classes, the maps of every layer over it.

    Args:
        sections: examples under a heading.
        layers: names of the layers.
    """
    sections = {heading: examples for heading, examples in sections.items() if examples}
    num_guesses = max(len(example.guesses) for examples in sections.values() for example in examples)
    gap, between, line, above, below = 0.22, 0.04, 0.19, 0.02, 0.46  # inches
    group = len(layers)
    largest = 0.9 if group > 1 else 1.5
    cell = min(largest, (WIDTH - 0.1 - (gap + between * (group - 1)) * num_guesses) / (1 + group * num_guesses))
    pitch, step = cell + line, cell + between
    offsets = [0.05 + cell + gap + number * (group * step - between + gap) for number in range(num_guesses)]
    width = offsets[-1] + group * step - between + 0.05
    num_rows = sum(len(examples) for examples in sections.values())
    height = above + len(sections) * 0.3 + num_rows * pitch + below
    figure = Figure(figsize=(width, height))

    def panel_at(x: float, y: float) -> Axes:
        """A square whose upper left corner is so many inches from the figure's."""
        return figure.add_axes((x / width, 1 - (y + cell) / height, cell / width, cell / height))

    def say(x: float, y: float, text: str, **looks: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **looks)

    y = above
    for ordinal, x in zip(("likeliest class", "second likeliest class"), offsets, strict=False):
        say(x + (group * step - between) / 2, y + 0.2, ordinal, fontsize=9, ha="center")
    for heading, examples in sections.items():
        say(0.05, y + 0.2, heading, fontsize=9, va="baseline")
        y += 0.3
        for example in examples:
            say(0.05, y + line - 0.05, shown(example.label, cell + gap), fontsize=7.5)
            _picture(panel_at(0.05, y + line), example.image)
            for x, guess, maps in zip(offsets, example.guesses, example.maps, strict=False):
                middle, name = x + (group * step - between) / 2, shown(guess, group * step)
                say(middle, y + line - 0.05, name, fontsize=7.5, ha="center")
                for number, values in enumerate(maps):
                    drawn = _heat(panel_at(x + number * step, y + line), example.image, values)
            y += pitch
    for x in offsets:
        for number, name in enumerate(layers):
            say(x + number * step + cell / 2, y + 0.14, name, fontsize=7, ha="center", color=GREY)
    bar = figure.colorbar(
        drawn,
        cax=figure.add_axes(((width - 1.6) / width, 0.1 / height, 1.0 / width, 0.09 / height)),
        orientation="horizontal",
    )
    bar.set_ticks([])
    bar.outline.set_visible(False)
    say(
        width - 1.65,
        height - 0.1,
        "similarity with the label embedding, each map on its own scale:   low",
        fontsize=7,
        ha="right",
    )
    say(width - 0.55, height - 0.1, "high", fontsize=7)
    return figure


@dataclass(frozen=True, kw_only=True)
class AnchorRow:
    """An anchor, an image of its class and one of another class, with the similarities of the first to both."""

    images: Sequence[Numbers]
    labels: Sequence[str]
    same: Sequence[float]
    other: Sequence[float]


@styled
def anchors(rows: Sequence[AnchorRow], mean_same: Sequence[float], mean_other: Sequence[float]) -> Figure:
    """A row per anchor: three images, and the cosine similarities over the layers beside the means of all pairs."""
    figure = Figure(figsize=(WIDTH * 0.86, 1.55 * len(rows) + 0.45), layout="constrained")
    grid = figure.add_gridspec(len(rows), 4, width_ratios=[1, 1, 1, 2.6])
    num_layers = len(mean_same)
    positions = np.arange(1, num_layers + 1)
    low = min(0.0, *mean_other, *(value for row in rows for value in (*row.same, *row.other)))
    charts = []
    for number, row in enumerate(rows):
        for column, (image, label, part) in enumerate(
            zip(row.images, row.labels, ("anchor", "same class", "other class"), strict=True)
        ):
            axes = figure.add_subplot(grid[number, column])
            _picture(axes, image)
            name = shown(label, 1.05)
            axes.set_title(f"{part}:\n{name}" if number == 0 else name, fontsize=7.5, pad=3)
        axes = figure.add_subplot(grid[number, 3])
        axes.plot(positions, row.same, color=BLUE, marker="o", label="anchor and same class")
        axes.plot(positions, row.other, color=ORANGE, marker="s", label="anchor and other class")
        axes.plot(positions, mean_same, color=BLUE, linestyle=":", linewidth=1, label="mean of all pairs of one class")
        axes.plot(positions, mean_other, color=ORANGE, linestyle=":", linewidth=1, label="mean of all other pairs")
        layer_axis(axes, num_layers)
        axes.set_ylim(low - 0.06, 1.06)
        axes.grid(axis="y")
        axes.set_ylabel("cosine similarity")
        if number < len(rows) - 1:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
        charts.append(axes)
    handles, entries = charts[0].get_legend_handles_labels()
    figure.legend(handles, entries, loc="outside lower center", ncols=2)
    return figure


def _picture(axes: Axes, image: Numbers) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()


def _heat(axes: Axes, image: Numbers, values: Numbers) -> AxesImage:
    """A map over the grey image, from its lowest value (blue) to its highest (red)."""
    grey = image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114])
    # Lightened, so that colours mean the same over dark parts.
    axes.imshow(0.5 + 0.5 * grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    low, high = float(values.min()), float(values.max())
    high = max(high, low + 1e-9)
    drawn = axes.imshow(values, cmap="RdYlBu_r", vmin=low, vmax=high, alpha=0.6, interpolation="bilinear")
    axes.set_axis_off()
    return drawn
