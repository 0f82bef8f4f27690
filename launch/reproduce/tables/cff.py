"""Contrastive Forward-Forward (Aghagolzadeh & Ezoji 2025): Tables 1 to 6, Figures 4 and 5.

The paper gives one figure each and names no seeds. What it does not give, the presets say (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Iterator

from launch.presets.papers import CFF
from launch.reproduce.table import Entry, Table

_TOP_K = "Accuracy is top-1 on MNIST and CIFAR-10, top-5 on CIFAR-100, top-10 on Tiny ImageNet."
_BACKPROP = "Backpropagation: learning rate 5e-4 (ViT), the paper names none; the MLP's settings are not published."
_RANDAUGMENT = " --randaugment-ops 3"
_CROP, _BOTH = "crop only", "crop + RandAugment"
_PLAIN = " --margin-first 0 --margin-last 0"
_BP = " --baseline bp --lr 5e-4"

_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tiny-imagenet": "Tiny ImageNet"}
_SIZES = {
    "ViT[128 4 5]": "",
    "ViT[192 6 6]": " --dim 192 --heads 6 --depth 6",
    "ViT[240 6 7]": " --dim 240 --heads 6 --depth 7",
}
_OWN = {"cifar10": "ViT[128 4 5]", "cifar100": "ViT[192 6 6]", "tiny-imagenet": "ViT[240 6 7]"}


def _cff(data: str, net: str) -> str:
    """The run of CFF+M on a ViT, with random crop."""
    return f"cff-vit-{data}{'' if net == _OWN[data] else _SIZES[net]}"


def _goodness(method: str, data: str) -> str:
    """The run of FF or one of its kind on the ViT that the paper has for a data set."""
    other = "" if data == "cifar10" else f" --data {data}{_SIZES[_OWN[data]]}"
    return f"{method}-vit-cifar10{other}"


_METHODS = {"FF": "ff", "SymBa": "symba", "FF Collab": "ff-collab"}


def _table1() -> Iterator[Entry]:
    columns = (*_METHODS, "CFF", "CFF+M")
    of_mlp = {name: f"{method}-mlp-mnist" for name, method in _METHODS.items()}
    rows: list[tuple[str, str, dict[str, str], tuple[float, ...]]] = [
        (
            "MNIST",
            "MLP[500 3]",
            {**of_mlp, "CFF": f"cff-mlp-mnist{_PLAIN}", "CFF+M": "cff-mlp-mnist"},
            (97.12, 97.82, 97.70, 96.33, 97.69),
        ),
        (
            "CIFAR-10",
            "MLP[800 4]",
            {
                **{name: f"{run} --data cifar10 --width 800 --depth 4" for name, run in of_mlp.items()},
                "CFF": f"cff-mlp-cifar10{_PLAIN}",
                "CFF+M": "cff-mlp-cifar10",
            },
            (50.35, 56.80, 54.33, 54.32, 57.33),
        ),
    ]
    for data, figures in (
        ("cifar10", (76.21, 69.13, 70.66, 78.70, 80.42)),
        ("cifar100", (72.15, 68.78, 71.79, 79.23, 80.39)),
        ("tiny-imagenet", (62.11, 59.46, 62.15, 72.43, 73.23)),
    ):
        run = _cff(data, _OWN[data])
        goodness = {name: _goodness(method, data) for name, method in _METHODS.items()}
        rows.append((_DATA[data], _OWN[data], {**goodness, "CFF": run + _PLAIN, "CFF+M": run}, figures))
    for name, net, runs, accuracies in rows:
        for method, figure in zip(columns, accuracies, strict=True):
            yield Entry(labels=(name, net, method), run=runs[method], paper={"accuracy": figure})


def _table2() -> Iterator[Entry]:
    head = " --readout after"
    for data, figures in (
        ("cifar10", {"FF": (76.21, 65.33), "SymBa": (69.13, 60.15)}),
        ("cifar100", {"FF": (72.15, 62.77)}),
    ):
        for method, (without, with_head) in figures.items():
            run = _goodness(_METHODS[method], data)
            labels = (_DATA[data], _OWN[data], method)
            yield Entry(labels=(*labels, "no"), run=run, paper={"accuracy": without})
            yield Entry(labels=(*labels, "yes"), run=run + head, paper={"accuracy": with_head})
        figure = {"cifar10": 80.19, "cifar100": 80.39}[data]
        yield Entry(
            labels=(_DATA[data], _OWN[data], "CFF+M", "yes"), run=_cff(data, _OWN[data]), paper={"accuracy": figure}
        )


def _table3() -> Iterator[Entry]:
    no_crop = " --crop-padding 0"
    rows: list[tuple[str, str, str, str, str, float, float]] = [
        ("none", "MNIST", "MLP[500 3]", "cff-mlp-mnist", " --baseline bp", 98.00, 97.30),
        ("none", "MNIST", "MLP[800 4]", "cff-mlp-mnist --width 800 --depth 4", " --baseline bp", 98.13, 97.62),
        ("none", "CIFAR-10", "MLP[800 4]", f"cff-mlp-cifar10{no_crop}", _BP, 54.20, 54.55),
    ]
    for augmentation, flags, figures in (
        (
            _CROP,
            "",
            {
                "cifar10": ((76.92, 80.42), (76.68, 79.74), (77.04, 79.96)),
                "cifar100": ((78.12, 80.39), (77.75, 78.44)),
                "tiny-imagenet": ((74.01, 73.23),),
            },
        ),
        (
            _BOTH,
            _RANDAUGMENT,
            {
                "cifar10": ((86.33, 81.73), (86.95, 85.17), (87.62, 85.37)),
                "cifar100": ((84.13, 84.28), (82.88, 84.29)),
                "tiny-imagenet": ((78.95, 76.06),),
            },
        ),
    ):
        for data, pairs in figures.items():
            for net, (backprop, ours) in zip(list(_SIZES)[-len(pairs) :], pairs, strict=True):
                rows.append((augmentation, _DATA[data], net, _cff(data, net) + flags, _BP, backprop, ours))
    for augmentation, data, net, run, baseline, backprop, ours in rows:
        labels = (augmentation, data, net)
        yield Entry(labels=(*labels, "BP"), run=run + baseline, paper={"accuracy": backprop})
        yield Entry(labels=(*labels, "CFF+M"), run=run, paper={"accuracy": ours})


def _table4() -> Iterator[Entry]:
    for missing, noisy, flags, backprop, ours in (
        (0, 0, "", 86.95, 85.17),
        (50, 0, " --train-fraction 0.5", 78.27, 80.58),
        (80, 0, " --train-fraction 0.2", 69.19, 73.26),
        (0, 20, " --label-noise 0.2", 78.10, 78.33),
        (0, 40, " --label-noise 0.4", 70.36, 71.20),
    ):
        run = _cff("cifar10", "ViT[192 6 6]") + _RANDAUGMENT + flags
        labels = (f"{missing}", f"{noisy}")
        yield Entry(labels=(*labels, "BP"), run=run + _BP, paper={"accuracy": backprop})
        yield Entry(labels=(*labels, "CFF+M"), run=run, paper={"accuracy": ours})


def _table5() -> Iterator[Entry]:
    for data, token, pooling in (("cifar10", 76.63, 81.73), ("cifar100", 79.00, 84.28)):
        run = _cff(data, _OWN[data]) + _RANDAUGMENT
        labels = (_OWN[data], _DATA[data])
        yield Entry(labels=(*labels, "token"), run=f"{run} --pooling token", paper={"accuracy": token})
        yield Entry(labels=(*labels, "pooling"), run=run, paper={"accuracy": pooling})


def _table6() -> Iterator[Entry]:
    for data, net, augmentation, less, one, two, backprop in (
        ("cifar10", "ViT[128 4 5]", _CROP, -1.42, 9, 18, 8),
        ("cifar10", "ViT[192 6 6]", _CROP, -0.04, 14, 27, 13),
        ("cifar10", "ViT[192 6 6]", _BOTH, -1.92, 23, 48, 22),
        ("cifar100", "ViT[192 6 6]", _BOTH, -1.65, 23, 48, 22),
        ("cifar100", "ViT[240 6 7]", _CROP, -1.08, 19, 38, 18),
        ("tiny-imagenet", "ViT[240 6 7]", _BOTH, -2.20, 56, 110, 54),
    ):
        run = _cff(data, net) + (_RANDAUGMENT if augmentation == _BOTH else "")
        labels = (_DATA[data], net, augmentation)
        one_forward = Entry(
            labels=(*labels, "one forward"), run=f"{run} --views 1", against=run, paper={"gain": less, "seconds": one}
        )
        yield one_forward
        yield Entry(labels=(*labels, "two forwards"), run=run, paper={"seconds": two})
        yield Entry(labels=(*labels, "BP"), run=run + _BP, paper={"seconds": backprop})


def _fig4() -> Iterator[Entry]:
    for data, net, augmentation, known in (
        ("cifar10", "ViT[128 4 5]", _CROP, 80.42),
        ("cifar10", "ViT[128 4 5]", _BOTH, 81.73),
        ("cifar100", "ViT[192 6 6]", _CROP, 80.39),
        ("cifar100", "ViT[192 6 6]", _BOTH, 84.28),
    ):
        run = _cff(data, net) + (_RANDAUGMENT if augmentation == _BOTH else "")
        for margin in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            yield Entry(
                labels=(f"{_DATA[data]}, {net}, {augmentation}", f"{margin}"),
                run=f"{run} --margin-first {margin}",
                paper={"accuracy": known} if margin == 0.4 else {},
            )


def _fig5() -> Iterator[Entry]:
    for layer in range(1, 6):
        paper = {1: {"fisher": 13.0}, 5: {"fisher": 40.0}}.get(layer, {})
        yield Entry(labels=(f"{layer}",), run=_cff("cifar10", "ViT[128 4 5]"), paper=paper, layer=layer)


TABLES: dict[str, Table] = {
    "cff-table1": Table(
        title="CFF and CFF+M beside FF, SymBa and FF Collab",
        source=CFF,
        place="Table 1",
        headings=("data", "net", "method"),
        measures=("accuracy",),
        entries=tuple(_table1()),
        notes=(_TOP_K, "For the MLPs the paper names no settings: epochs and learning rates are ours."),
    ),
    "cff-table2": Table(
        title="FF and SymBa with a linear head and without",
        source=CFF,
        place="Table 2",
        headings=("data", "net", "method", "head"),
        measures=("accuracy",),
        entries=tuple(_table2()),
        notes=(_TOP_K, "The paper's inference times name neither device nor batch; they are left out."),
    ),
    "cff-table3": Table(
        title="CFF+M beside backpropagation, with and without augmentation",
        source=CFF,
        place="Table 3",
        headings=("augmentation", "data", "net", "method"),
        measures=("accuracy",),
        entries=tuple(_table3()),
        notes=(_TOP_K, _BACKPROP),
    ),
    "cff-table4": Table(
        title="robustness: a part of the images missing, or a part of the labels wrong",
        source=CFF,
        place="Table 4",
        headings=("images missing, %", "labels wrong, %", "method"),
        measures=("accuracy",),
        entries=tuple(_table4()),
        notes=("CIFAR-10, ViT[192 6 6], crop + RandAugment.", _BACKPROP),
    ),
    "cff-table5": Table(
        title="a class token or pooling",
        source=CFF,
        place="Table 5",
        headings=("net", "data", "features"),
        measures=("accuracy",),
        entries=tuple(_table5()),
        notes=(_TOP_K, "With crop and RandAugment, whose figures of Table 3 the paper's are."),
    ),
    "cff-table6": Table(
        title="one forward pass or two, and the time of an epoch",
        source=CFF,
        place="Table 6",
        headings=("data", "net", "augmentation", "trained by"),
        measures=("gain", "accuracy", "seconds"),
        entries=tuple(_table6()),
        notes=(_TOP_K, "The paper does not name the device that its seconds are of."),
    ),
    "cff-fig4": Table(
        title="the margin of the first layer, m0",
        source=CFF,
        place="Figure 4",
        headings=("run", "m0"),
        measures=("accuracy",),
        entries=tuple(_fig4()),
        notes=(
            _TOP_K,
            "The paper's text says that m0 from 0.3 to 0.5 is good. It takes 0.4, whose figures are those of Table 3.",
            "Its other figures are in a picture alone, and so is which nets they are of; these are our choice.",
        ),
        picture=True,
    ),
    "cff-fig5": Table(
        title="what every layer has learned: Fisher criterion, loss, accuracy",
        source=CFF,
        place="Figure 5",
        headings=("layer",),
        measures=("fisher", "loss", "layer-accuracy"),
        entries=tuple(_fig5()),
        notes=(
            'CIFAR-10, ViT[128 4 5], crop. The paper has Fisher criteria "from around 13 to 40", of a net not named.',
            "`launch analyse` draws t-SNE, similarities and pairs within the margin of each of these runs.",
        ),
        picture=True,
    ),
}
