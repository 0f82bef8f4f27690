"""An analysis as numbers: the table that is printed, and analysis.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from launch.analyse.figures import Analysis, LayerFigures
from launch.output.tables import print_table
from pipeline.analysis import figures
from pipeline.methods import METHODS


def print_figures(console: Console, analysis: Analysis) -> None:
    """Prints the main figures, a row per layer; columns that no layer has anything for are left out."""
    split, top_k = split_name(analysis), min(analysis.spec.top_k, len(analysis.spec.classes))
    rows = [_figures(analysis, layer) for layer in analysis.layers]
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("readout_accuracy", "readout accuracy", _percent),
        ("direct_accuracy", "without readout", _percent),
        ("top_k_accuracy", f"top-{top_k} accuracy", _percent),
        ("fisher_validation", "Fisher validation", "{:.1f}".format),
        ("fisher", f"Fisher {split}", "{:.1f}".format),
        ("similarity_same", "cosine same class", "{:.3f}".format),
        ("similarity_other", "cosine other class", "{:.3f}".format),
        ("margin_occupancy", "inside margin", _percent),
        ("goodness_right", "goodness own label", "{:.3g}".format),
        ("goodness_wrong", "goodness other label", "{:.3g}".format),
    ]
    if split == "validation":
        columns = [column for column in columns if column[0] != "fisher"]
    columns = [column for column in columns if any(row[column[0]] is not None for row in rows)]
    print_table(
        console,
        ("layer", *(heading for _, heading, _ in columns)),
        [
            [str(row["layer"]), *("–" if row[key] is None else form(row[key]) for key, _, form in columns)]
            for row in rows
        ],
        title=f"{net_on_data(analysis)}, {len(analysis.labels):,} {split} images",
    )


def _figures(analysis: Analysis, layer: LayerFigures) -> dict[str, Any]:
    """The figures of one layer that are single numbers."""
    record, labels = layer.record, analysis.labels
    top_k = min(analysis.spec.top_k, len(analysis.spec.classes))
    guesses = record.guesses
    return {
        "layer": record.index + 1,
        "features": record.features.shape[1],
        "readout_accuracy": None if record.readout is None else figures.top_accuracy(labels, record.readout),
        "direct_accuracy": None if record.direct is None else figures.top_accuracy(labels, record.direct),
        "top_k_accuracy": None if guesses is None or top_k == 1 else figures.top_accuracy(labels, guesses, top_k),
        "fisher_validation": layer.fisher_validation,
        "fisher": layer.fisher,
        "similarity_same": _finite(layer.pairs.same),
        "similarity_other": _finite(layer.pairs.other),
        "margin": record.margin,
        "margin_occupancy": layer.pairs.inside,
        "goodness_right": None if layer.goodness is None else float(layer.goodness[0].double().mean()),
        "goodness_wrong": None if layer.goodness is None else float(layer.goodness[1].double().mean()),
    }


def numbers(analysis: Analysis) -> dict[str, Any]:
    """Everything that analysis.json holds, but for the list of pictures."""
    wishes, spec, layers = analysis.wishes, analysis.spec, analysis.layers
    groups = analysis.superclasses
    return {
        "format": 1,
        "net": spec.net.describe(),
        "method": METHODS.dump(spec.settings.method),
        "data": {"name": spec.data_name, "content_hash": spec.content_hash},
        "split": split_name(analysis),
        "num_images": len(analysis.labels),
        "num_validation": analysis.num_validation,
        "seed": wishes.seed,
        "top_k": min(spec.top_k, len(spec.classes)),
        "classes": list(spec.classes),
        "superclasses": None
        if groups is None
        else {
            name: [spec.classes[label] for label in group]
            for name, group in zip(groups.names, groups.groups, strict=True)
        },
        "layers": [_figures(analysis, layer) for layer in layers],
        "confusion": [None if layer.confusion is None else layer.confusion.tolist() for layer in layers],
        "embeddings": [
            {"layers": title, "cosine": _rounded(figures.cosines(t)), "dot": _rounded(figures.dot_products(t))}
            for title, t in seen_embeddings(layers)
        ],
        "anchors": [
            {
                "images": [analysis.ids[image] for image in (anchor.anchor, anchor.same, anchor.other)],
                "classes": [
                    spec.classes[int(analysis.labels[image])] for image in (anchor.anchor, anchor.same, anchor.other)
                ],
                "same": [layer.anchors[number][0] for layer in layers],
                "other": [layer.anchors[number][1] for layer in layers],
            }
            for number, anchor in enumerate(analysis.anchors)
        ],
        "attention": [
            {
                "image": analysis.ids[image],
                "class": spec.classes[int(analysis.labels[image])],
                "guesses": likeliest(analysis, analysis.guesses, image),
                "maps": [
                    {
                        "layer": layer.record.index + 1,
                        "guesses": likeliest(analysis, layer.record.guesses, image),
                        "values": _rounded(layer.maps[image]),
                    }
                    for layer in layers
                    if layer.maps
                ],
            }
            for image in (*analysis.right, *analysis.wrong)
        ],
        "tsne": {
            "images": [analysis.ids[image] for image in analysis.scattered],
            "labels": analysis.labels[analysis.scattered].tolist(),
            "layers": [_rounded(torch.from_numpy(layer.scatter)) for layer in layers if layer.scatter is not None],
        },
    }


def _rounded(values: Tensor) -> Any:
    """Nested lists of numbers with six significant digits."""
    listed = values.double().tolist()

    def round_all(value: Any) -> Any:
        return [round_all(inner) for inner in value] if isinstance(value, list) else float(f"{value:.6g}")

    return round_all(listed)


def as_json(value: Any, indent: str = "") -> str:
    """JSON that a person can read: a row of numbers or names takes one line."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        inner = [f"{json.dumps(key, ensure_ascii=False)}: {as_json(entry, deeper)}" for key, entry in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(entry, list | dict) for entry in value):
        inner = [as_json(entry, deeper) for entry in value]
        opening, closing = "[", "]"
    else:
        return json.dumps(value, ensure_ascii=False)
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(inner) + f"\n{indent}{closing}"


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def seen_embeddings(layers: Sequence[LayerFigures]) -> list[tuple[str, Tensor]]:
    """Label embeddings as the layers see them; one entry for neighbours that see the same."""
    runs: list[tuple[list[int], Tensor]] = []
    for layer in layers:
        targets, number = layer.record.targets, layer.record.index + 1
        if targets is None:
            continue
        if runs and torch.equal(runs[-1][1], targets):
            runs[-1][0].append(number)
        else:
            runs.append(([number], targets))
    return [
        (f"layer{f's {run[0]}-' if len(run) > 1 else ' '}{run[-1]} (C = {targets.shape[1]})", targets)
        for run, targets in runs
    ]


def likeliest(analysis: Analysis, guesses: Tensor | None, image: int) -> list[str]:
    """An image's two likeliest classes."""
    assert guesses is not None, "layers with label embeddings predict"
    return [analysis.spec.classes[label] for label in guesses[image, :2].tolist()]


def split_name(analysis: Analysis) -> str:
    """What the analysed split is called."""
    return "validation" if analysis.wishes.split == "validate" else analysis.wishes.split


def net_on_data(analysis: Analysis) -> str:
    """Such as "conv512 on cifar10"."""
    return f"{analysis.spec.net.describe()} on {analysis.spec.data_name}"
