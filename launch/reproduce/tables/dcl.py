"""Dictionary contrastive learning (Choi et al. 2024): Tables 3 and 8."""

from __future__ import annotations

from launch.presets.papers import DCL
from launch.reproduce.table import Entry, Table

_DATA = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "stl10": "STL-10",
}
_MODES = {
    "DC-FL": ("", (0.33, 5.52, 8.64, 31.75, 2.19, 22.87)),
    "DC-FL-O": (" --embedding-mode last", (0.32, 5.39, 8.68, 34.58, 2.18, 23.56)),
    "DC-FL-LD": (" --embedding-mode per-layer", (0.34, 5.50, 8.45, 31.64, 2.19, 22.59)),
}
_BLOCKS = {
    "ResNet-32": ("dcl-resnet32", 6.70, 25.19),
    "ViT": ("dcl-vit", 16.25, 32.63),
    "MLP-Mixer": ("dcl-mixer", 17.23, 23.51),
}

TABLES: dict[str, Table] = {
    "dcl-table3": Table(
        title="whose gradients change the label embeddings, VGG8b on six data sets",
        source=DCL,
        place="Table 3",
        headings=("data", "method"),
        measures=("error",),
        entries=tuple(
            Entry(labels=(name, method), run=f"dcl-vgg8b --data {data}{flags}", paper={"error": errors[number]})
            for number, (data, name) in enumerate(_DATA.items())
            for method, (flags, errors) in _MODES.items()
        ),
    ),
    "dcl-table8": Table(
        title="block-wise nets beside backpropagation, CIFAR-10",
        source=DCL,
        place="Table 8",
        headings=("net", "method"),
        measures=("error",),
        entries=tuple(
            Entry(labels=(net, method), run=preset + flags, paper={"error": error})
            for net, (preset, backprop, error) in _BLOCKS.items()
            for method, flags, error in (("BP", " --baseline bp", backprop), ("DC-FL", "", error))
        ),
        notes=("Nets are divided into blocks that each learn locally; embeddings are 512 long.",),
    ),
}
