"""An analysis as a person gets it: a table, pictures, analysis.json, and the pictures again in TensorBoard.

A picture is drawn where the run's method offers what it shows: predictions, label embeddings, a margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from launch.analyse.figures import Analysis, LayerFigures
from launch.analyse.numbers import as_json, likeliest, net_on_data, numbers, print_figures, seen_embeddings, split_name
from launch.output import pictures as draw
from launch.output.console import say
from launch.output.pictures import AnchorRow, Classes, Example
from launch.output.whole_file import write_whole
from pipeline import plain_json
from pipeline.analysis import figures
from pipeline.data.sources.base import Progress

_NUMBERS = "analysis.json"
_VECTORS = ("pdf", "svg")
_EVENTS = "events.out.tfevents.*"
_SUFFIX = ".analysis"  # of the name of its events


@dataclass(frozen=True)
class Picture:
    """A picture's file, what it shows, and how to draw it."""

    file: str
    shows: str
    draw: Callable[[], Figure]


def pictures(analysis: Analysis) -> list[Picture]:
    """The pictures that the run's method has something to show in."""
    return [
        *_accuracy(analysis),
        *_geometry(analysis),
        *_goodness(analysis),
        *_embeddings(analysis),
        *_images(analysis),
    ]


def show(console: Console, folder: Path, analysis: Analysis, drawn: Sequence[Picture]) -> None:
    """Prints the main figures and the files."""
    print_figures(console, analysis)
    say(console, f"in {folder}, each picture also as .{analysis.wishes.format}:")
    listing = Table(show_header=False, box=None, pad_edge=False)
    for picture in drawn:
        listing.add_row(f"  {picture.file}", picture.shows)
    listing.add_row(f"  {_NUMBERS}", "every number above and behind the pictures (docs/analysis.md says their names)")
    console.print(listing)


def write(folder: Path, analysis: Analysis, drawn: Sequence[Picture], *, run_goes_on: bool, progress: Progress) -> None:
    """Writes pictures, numbers and TensorBoard events in place of those of an earlier analysis.

    The events are the run's own, in a file beside its others. Of a run that goes on they are another run's, as two
    writers in one folder would lose data.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    run, spec = folder.parent, analysis.spec
    for old in (*_earlier(folder), folder / _NUMBERS, *folder.glob(_EVENTS), *run.glob(_EVENTS + _SUFFIX)):
        old.unlink(missing_ok=True)
    step = spec.epochs * spec.steps_per_epoch
    with SummaryWriter(str(folder if run_goes_on else run), filename_suffix=_SUFFIX) as events:
        for number, picture in enumerate(drawn):
            progress("drawing", number, len(drawn))
            file = folder / picture.file
            draw.write(picture.draw(), file, analysis.wishes.format)
            with Image.open(file) as opened:
                image = np.asarray(opened.convert("RGB"))
                events.add_image(f"analysis/{file.stem}", image, step, dataformats="HWC")
    progress("drawing", len(drawn), len(drawn))
    files = {picture.file: picture.shows for picture in drawn}
    values = numbers(analysis) | {"pictures": files, "pictures_format": analysis.wishes.format}
    write_whole(folder / _NUMBERS, as_json(values) + "\n")


def _earlier(folder: Path) -> list[Path]:
    """Pictures of an analysis that was here before."""
    try:
        before = plain_json.read(folder / _NUMBERS)
        files = [folder / name for name in before["pictures"] if Path(name).name == name]
        vector = before.get("pictures_format")
        return [*files, *(file.with_suffix(f".{vector}") for file in files if vector in _VECTORS)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _accuracy(analysis: Analysis) -> list[Picture]:
    layers, labels = analysis.layers, analysis.labels
    judged = [layer for layer in layers if layer.confusion is not None]
    if not judged:
        return []
    ways = {"readout": _accuracies(layers, labels, "readout"), "without readout": _accuracies(layers, labels, "direct")}
    series = {name: values for name, values in ways.items() if any(value is not None for value in values)}
    split, classes, last = split_name(analysis), _classes(analysis), judged[-1]
    drawn = [
        Picture(
            "confusion.png",
            f"confusion matrix of {_whose(last)}",
            lambda: draw.confusion(_shares(last), classes, title=f"{net_on_data(analysis)}\n{_whose(last)}"),
        )
    ]
    if len(layers) > 1:
        label = f"{split} accuracy" + (f", {next(iter(series))}" if len(series) == 1 else "")
        drawn.append(
            Picture(
                "accuracy.png",
                f"{split} accuracy of every layer",
                lambda: draw.lines(series, label=label, percent=True),
            )
        )
    if len(judged) > 1:
        titles = [_whose(layer).replace(", ", "\n", 1) for layer in judged]
        drawn.append(
            Picture(
                "confusion-layers.png",
                "confusion matrices of all layers",
                lambda: draw.confusions([_shares(layer) for layer in judged], titles, classes),
            )
        )
    return drawn


def _geometry(analysis: Analysis) -> list[Picture]:
    layers, split = analysis.layers, split_name(analysis)
    drawn = []
    if len(layers) > 1 and len(analysis.spec.classes) > 1:
        fisher = {f"validation, {analysis.num_validation:,} images": [layer.fisher_validation for layer in layers]}
        if split != "validation":
            fisher[f"{split}, {len(analysis.labels):,} images"] = [layer.fisher for layer in layers]
        drawn.append(
            Picture(
                "fisher.png",
                "Fisher criterion of every layer's features",
                lambda: draw.lines(fisher, label="Fisher criterion"),
            )
        )
    occupied = [(layer.pairs.inside, layer.record.margin) for layer in layers]
    known = [(share, margin) for share, margin in occupied if share is not None and margin is not None]
    if len(known) == len(layers):
        drawn.append(
            Picture(
                "margin.png",
                "positive pairs already inside the margin",
                lambda: draw.margins([share for share, _ in known], [margin for _, margin in known]),
            )
        )
    if analysis.anchors and len(layers) > 1:
        drawn.append(
            Picture(
                "anchors.png",
                "similarity of an anchor with its class and another, over the layers",
                lambda: draw.anchors(
                    [_anchor_row(analysis, number) for number in range(len(analysis.anchors))],
                    [layer.pairs.same for layer in layers],
                    [layer.pairs.other for layer in layers],
                ),
            )
        )
    if len(analysis.scattered):
        scatters = [layer.scatter for layer in layers if layer.scatter is not None]
        titles = [f"layer {layer.record.index + 1} (C = {layer.record.features.shape[1]})" for layer in layers]
        labels = analysis.labels[analysis.scattered].numpy()
        drawn.append(
            Picture(
                "tsne.png",
                f"t-SNE of every layer's features, {len(analysis.scattered):,} images",
                lambda: draw.scatters(scatters, titles, labels, analysis.spec.classes),
            )
        )
    return drawn


def _goodness(analysis: Analysis) -> list[Picture]:
    known = {
        f"layer {layer.record.index + 1}": layer.goodness for layer in analysis.layers if layer.goodness is not None
    }
    if not known:
        return []
    values = [(own.numpy(), other.numpy()) for own, other in known.values()]
    return [
        Picture(
            "goodness.png",
            "goodness of images with their own label and with others, in every layer",
            lambda: draw.goodness(values, list(known)),
        )
    ]


def _embeddings(analysis: Analysis) -> list[Picture]:
    seen = seen_embeddings(analysis.layers)
    if not seen:
        return []
    classes, titles = _classes(analysis), [title for title, _ in seen]
    last = seen[-1][1]

    def one(measure: Callable[[Tensor], Tensor], label: str) -> Figure:
        title = f"{net_on_data(analysis)}, {titles[-1]}"
        return draw.similarity(measure(last).numpy(), classes, title=title, label=label)

    drawn = [
        Picture(
            "embeddings-cosine.png",
            f"cosine similarity of label embeddings, {titles[-1]}",
            lambda: one(figures.cosines, "cosine similarity of label embeddings"),
        ),
        Picture(
            "embeddings-dot.png",
            f"dot products of label embeddings, {titles[-1]}",
            lambda: one(figures.dot_products, "dot product of label embeddings"),
        ),
    ]
    if len(seen) > 1:
        drawn.append(
            Picture(
                "embeddings-layers.png",
                "cosine similarity of label embeddings as all layers see them",
                lambda: draw.similarities(
                    [figures.cosines(t).numpy() for _, t in seen],
                    titles,
                    classes,
                    label="cosine similarity of label embeddings",
                ),
            )
        )
    return drawn


def _images(analysis: Analysis) -> list[Picture]:
    mapped = [layer for layer in analysis.layers if layer.maps]
    if not mapped:
        return []
    sections = {"predicted right": analysis.right, "predicted wrong": analysis.wrong}
    examples = {
        heading: [_example(analysis, mapped, image) for image in chosen] for heading, chosen in sections.items()
    }
    return [
        Picture(
            "attention.png",
            "where an image resembles the embeddings of its two likeliest classes",
            lambda: draw.attention(examples, [f"layer {layer.record.index + 1}" for layer in mapped]),
        )
    ]


def _example(analysis: Analysis, mapped: Sequence[LayerFigures], image: int) -> Example:
    guesses, size = likeliest(analysis, analysis.guesses, image), (analysis.spec.shape[1], analysis.spec.shape[2])
    return Example(
        image=_pixels(analysis.images[image]),
        label=analysis.spec.classes[int(analysis.labels[image])],
        guesses=guesses,
        maps=[
            [figures.stretch(layer.maps[image][rank], size).numpy() for layer in mapped] for rank in range(len(guesses))
        ],
    )


def _anchor_row(analysis: Analysis, number: int) -> AnchorRow:
    anchor = analysis.anchors[number]
    chosen = (anchor.anchor, anchor.same, anchor.other)
    return AnchorRow(
        images=[_pixels(analysis.images[image]) for image in chosen],
        labels=[analysis.spec.classes[int(analysis.labels[image])] for image in chosen],
        same=[layer.anchors[number][0] for layer in analysis.layers],
        other=[layer.anchors[number][1] for layer in analysis.layers],
    )


def _pixels(image: Tensor) -> NDArray[np.float64]:
    """(channels, H, W) uint8 as (H, W, 3) or, of another number of channels, their mean (H, W); 0 … 1."""
    values = image.double().numpy() / 255
    return values.transpose(1, 2, 0) if len(values) == 3 else values.mean(axis=0)


def _shares(layer: LayerFigures) -> NDArray[np.float64]:
    assert layer.confusion is not None, "asked of layers that predict"
    counts = layer.confusion.double()
    return (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()


def _whose(layer: LayerFigures) -> str:
    """Whose predictions a layer's confusion matrix counts, such as "layer 3, by its readout"."""
    record = layer.record
    if record.readout is not None:
        way = ", by its readout"
    elif record.targets is not None:
        way = " alone, by its label embeddings"
    else:
        way = ", by its own scores"
    return f"layer {record.index + 1}{way}"


def _accuracies(layers: Sequence[LayerFigures], labels: Tensor, way: str) -> list[float | None]:
    guesses = [getattr(layer.record, way) for layer in layers]
    return [None if guess is None else figures.top_accuracy(labels, guess) for guess in guesses]


def _classes(analysis: Analysis) -> Classes:
    names, groups = analysis.spec.classes, analysis.superclasses
    if groups is None:
        return Classes(names, range(len(names)))
    sizes = [len(group) for group in groups.groups]
    return Classes(names, groups.order, list(zip(groups.names, sizes, strict=True)))
