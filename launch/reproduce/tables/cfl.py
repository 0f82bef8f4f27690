"""Contrastive forward learning with label embeddings (Anonymous 2023): Tables 1 and 6."""

from __future__ import annotations

from collections.abc import Iterator

from launch.presets.papers import CFL
from launch.reproduce.table import Entry, Table

_DATA = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

_ROWS: dict[tuple[str, str], tuple[str, tuple[float, float, float]]] = {
    ("CFL total-B", "FC"): ("cfl-fc", (1.69, 33.97, 68.4)),
    ("CFL total-D", "FC"): ("cfl-fc-d", (1.55, 33.78, 67.38)),
    ("CFL total-B", "conv256"): ("cfl-conv256", (2.96, 24.24, 51.1)),
    ("CFL total-D", "conv256"): ("cfl-conv256-d", (2.66, 24.56, 51.4)),
    ("CFL total-B without f^L", "conv256"): ("cfl-conv256-no-fl", (2.8, 24.77, 51.34)),
    ("CFL total-D without f^L", "conv256"): ("cfl-conv256-d-no-fl", (2.74, 27.5, 61.65)),
    ("CFL total-B", "conv512"): ("cfl-conv512", (1.36, 16.31, 50.43)),
    ("CFL total-D", "conv512"): ("cfl-conv512-d", (1.25, 16.49, 49.76)),
    ("CFL total-B without f^L", "conv512"): ("cfl-conv512-no-fl", (1.47, 16.67, 51.01)),
    ("CFL total-D without f^L", "conv512"): ("cfl-conv512-d-no-fl", (1.34, 16.84, 55.84)),
    ("BP", "FC"): ("cfl-fc --baseline bp", (1.29, 35.96, 67.3)),
    ("FA", "FC"): ("cfl-fc --baseline fa", (1.51, 39.33, 69)),
    ("DFA", "FC"): ("cfl-fc --baseline dfa", (1.75, 45.55, 86.42)),
    ("BP", "conv256"): ("cfl-conv256 --baseline bp", (2.63, 22.52, 48.72)),
    ("FA", "conv256"): ("cfl-conv256 --baseline fa", (2.85, 27.65, 52.57)),
    ("DFA", "conv256"): ("cfl-conv256 --baseline dfa", (9.4, 45.83, 68.56)),
    ("BP", "conv512"): ("cfl-conv512 --baseline bp", (1.31, 14.05, 46.4)),
    ("FA", "conv512"): ("cfl-conv512 --baseline fa", (1.3, 19.67, 52.93)),
    ("DFA", "conv512"): ("cfl-conv512 --baseline dfa", (4.39, 35.7, 69.06)),
}


def _table1() -> Iterator[Entry]:
    for number, (data, name) in enumerate(_DATA.items()):
        for (method, net), (run, errors) in _ROWS.items():
            words = f"{run} --data {data}"
            yield Entry(labels=(name, net, method), run=words, paper={"error": errors[number]})


TABLES: dict[str, Table] = {
    "cfl-table1": Table(
        title="CFL beside backpropagation and feedback alignment",
        source=CFL,
        place="Table 1",
        headings=("data", "net", "method"),
        measures=("error",),
        entries=tuple(_table1()),
        seeds=5,
        notes=(
            "The paper has the best test error. Here validation images choose the epoch: --validation test as there.",
            "Rows of other papers' methods, which have nets of their own, are left out.",
        ),
    ),
    "cfl-table6": Table(
        title="CFL on a Vision Transformer",
        source=CFL,
        place="Table 6",
        headings=("data", "net", "method"),
        measures=("error",),
        entries=(
            Entry(labels=("CIFAR-10", "ViT[256 4 6]", "BP"), run="cfl-vit --baseline bp", paper={"error": 23.27}),
            Entry(labels=("CIFAR-10", "ViT[256 4 6]", "CFL total-B"), run="cfl-vit", paper={"error": 37.73}),
        ),
        seeds=5,
        notes=("The paper names no sizes: ViT[256 4 6] has as many parameters as its net.",),
    ),
}
