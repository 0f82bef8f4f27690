"""The table of a run's layers, for the end of a run and for `launch eval`: a column a meaning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from launch.output.tables import print_table


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer's figures on test images, shares between 0 and 1.

    Attributes:
        layer: counted from 1.
        readout: accuracy of its readout, a linear classifier on its features; None without one.
        alone: accuracy of what the layer predicts by itself, such as by the most similar label embedding; None for
            methods that do not predict.
        top_k: the readout's share of images whose class is among its first k guesses, or the layer's own where no
            layer has a readout.
        fisher: Fisher criterion of its features.
        loss: its own loss.
    """

    layer: int
    readout: float | None
    alone: float | None
    top_k: float | None
    fisher: float | None
    loss: float | None


def print_layers(
    console: Console, rows: Sequence[LayerRow], *, top_k: int, loss: str, title: str | None = None
) -> None:
    """Prints a row per layer; columns that no layer has a figure for are left out.

    Args:
        top_k: the k of the data set's customary accuracy; 1 leaves the column out.
        loss: heading of the last column: whose loss it is.
    """
    readouts, alone = (any(getattr(row, name) is not None for row in rows) for name in ("readout", "alone"))
    columns: list[tuple[str, Callable[[LayerRow], str]]] = [("layer", lambda row: str(row.layer))]
    if readouts or not alone:
        columns.append(("by readout" if alone else "test accuracy", lambda row: percent(row.readout)))
    if alone:
        columns.append(("layer alone" if readouts else "test accuracy", lambda row: percent(row.alone)))
    if top_k > 1:
        columns.append((f"top-{top_k}", lambda row: percent(row.top_k)))
    columns.append(("Fisher criterion", lambda row: number(row.fisher, 1)))
    columns.append((loss, lambda row: number(row.loss, 3)))
    print_table(
        console, [heading for heading, _ in columns], [[cell(row) for _, cell in columns] for row in rows], title=title
    )


def accuracy_sentence(rows: Sequence[LayerRow]) -> str | None:
    """The network's accuracy: its last layer's, by the readout and by the layer alone; None where neither predicts."""
    last = rows[-1]
    if last.readout is None:
        return None if last.alone is None else f"test accuracy {percent(last.alone)}"
    if last.alone is None:
        return f"test accuracy {percent(last.readout)}"
    return f"test accuracy {percent(last.readout)} by the readout, {percent(last.alone)} by layer {last.layer} alone"


def percent(share: float | None) -> str:
    """12.34%, or a dash for None."""
    return "–" if share is None else f"{share:.2%}"


def number(value: float | None, digits: int) -> str:
    """1,234.5, or a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"
