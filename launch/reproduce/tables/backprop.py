"""What is lost against backpropagation: every method on the same nets, images and epochs. A line here is a row there.

No paper's table. Each method has the learning rate of its presets; images are not augmented.
"""

from __future__ import annotations

from collections.abc import Iterator

from launch.reproduce.table import Entry, Table

_ALL = (
    "--data fashion-mnist --crop-padding 0 --flip off --batch-size 128 --last-batch keep --epochs 30 "
    "--readout-epochs 20"
)
_NETS = {
    "MLP[500 3]": "--net mlp --width 500 --depth 3",
    "conv[8 16 32]": "--net conv --channels 8 16 32 --first-padding 1",
}
_MLP, _CONV = _NETS
_ADAMW = "--optimizer adamw --lr 1e-3 --weight-decay 0.01 --lr-schedule milestones --warmup-epochs 0"
"""In place of SGD at the rate of a deep residual net."""

_METHODS: dict[str, dict[str, str]] = {
    "BP": {_MLP: "cff-mlp-mnist --baseline bp", _CONV: "cfl-conv256 --baseline bp --lr 1e-3"},
    "FA": {_MLP: "cff-mlp-mnist --baseline fa", _CONV: "cfl-conv256 --baseline fa --lr 1e-3"},
    "DFA": {_MLP: "cff-mlp-mnist --baseline dfa", _CONV: "cfl-conv256 --baseline dfa --lr 1e-3"},
    "DRTP": {_MLP: "cff-mlp-mnist --baseline drtp --lr 1e-4", _CONV: "cfl-conv256 --baseline drtp --lr 1e-4"},
    "CFF+M": {_MLP: "cff-mlp-mnist", _CONV: "cff-mlp-mnist"},
    "CFF": {
        _MLP: "cff-mlp-mnist --margin-first 0 --margin-last 0",
        _CONV: "cff-mlp-mnist --margin-first 0 --margin-last 0",
    },
    "CFL total-B": {_MLP: "cfl-fc --groups 4", _CONV: "cfl-conv256"},
    "CFL total-D": {_MLP: "cfl-fc-d --groups 4", _CONV: "cfl-conv256-d"},
    "DC-FL": {_MLP: "dcl-fc --groups 4", _CONV: "dcl-conv256"},
    "FF": {_MLP: "ff-mlp-mnist", _CONV: "ff-mlp-mnist --lr 1e-3 --later-lr 1"},
    "SymBa": {_MLP: "symba-mlp-mnist", _CONV: "symba-mlp-mnist --lr 1e-3 --later-lr 1"},
    "FF Collab": {_MLP: "ff-collab-mlp-mnist", _CONV: "ff-collab-mlp-mnist --lr 1e-3 --later-lr 1"},
    "FFCL, first stage": {_MLP: "ffcl-mlp-mnist", _CONV: "ffcl-mlp-mnist"},
    "IFFCL": {_MLP: "iffcl-mlp-mnist", _CONV: "iffcl-mlp-mnist"},
    "CaFo, cross-entropy": {_MLP: "cafo-mnist-ce", _CONV: "cafo-mnist-ce"},
    "LL-cont": {_MLP: "infopro-vgg8b-cont", _CONV: "infopro-vgg8b-cont"},
    "LL-pred": {_MLP: "infopro-vgg8b-pred", _CONV: "infopro-vgg8b-pred"},
    "DGL": {_CONV: f"dgl-resnet32 {_ADAMW}"},
    "PredSim": {_CONV: f"predsim-resnet32 {_ADAMW}"},
}
"""Of every method what follows `launch` on each net that it trains, but for the net and what all share."""


def _entries() -> Iterator[Entry]:
    for net, sizes in _NETS.items():
        for method, runs in _METHODS.items():
            if net in runs:
                yield Entry(labels=(net, method), run=f"{runs[net]} {sizes} {_ALL}")


TABLES: dict[str, Table] = {
    "local-vs-bp": Table(
        title="what local learning loses against backpropagation, on the same nets, images and epochs",
        headings=("net", "method"),
        measures=("accuracy", "layer-1", "layer-2", "layer-3", "seconds"),
        entries=tuple(_entries()),
        notes=(
            "A layer's accuracy is that of its readout, or of what it predicts by itself where it has none.",
            "Seconds are one stage's, with validation, in which FF and its kind show every image with each label.",
        ),
    ),
}
