"""What is lost against backpropagation: every method on the same nets, images and epochs. A line here is a row there.

No paper's table. Each method has the learning rate of its presets; images are not augmented. The last epoch's weights
count: presets choose others by the loss or by the accuracy on validation images, which would favour some.
"""

from __future__ import annotations

from collections.abc import Iterator

from launch.reproduce.table import Entry, Table

_ALL = (
    "--data fashion-mnist --crop-padding 0 --flip off --batch-size 128 --last-batch keep --keep last "
    "--epochs 30 --readout-epochs 20"
)
_NETS = {
    "MLP[500 3]": "--net mlp --width 500 --depth 3",
    "conv[8 16 32]": "--net conv --channels 8 16 32 --first-padding 1",
}
_MLP, _CONV = _NETS
_ADAMW = "--optimizer adamw --lr 1e-3 --weight-decay 0.01 --lr-schedule milestones --warmup-epochs 0"
"""In place of SGD at the rate of a deep residual net."""

_LABEL = "--label-scale 10"
"""Of methods that see the label in ten of 784 pixels. A one there is hardly seen: layers behind the first do not learn
from it in so few epochs. Convolutions before a global pool can hardly tell which of the ten pixels it is."""

_CFF = "cff-mlp-mnist --views 1"
"""Images are not augmented, so a second view is the first once more, for twice the time."""

_METHODS: dict[str, dict[str, str]] = {
    "BP": {_MLP: "cff-mlp-mnist --baseline bp", _CONV: "cfl-conv256 --baseline bp --lr 1e-3"},
    "FA": {_MLP: "cff-mlp-mnist --baseline fa", _CONV: "cfl-conv256 --baseline fa --lr 1e-3"},
    "DFA": {_MLP: "cff-mlp-mnist --baseline dfa", _CONV: "cfl-conv256 --baseline dfa --lr 1e-3"},
    "DRTP": {_MLP: "cff-mlp-mnist --baseline drtp --lr 1e-4", _CONV: "cfl-conv256 --baseline drtp --lr 1e-4"},
    "CFF+M": dict.fromkeys(_NETS, _CFF),
    "CFF": dict.fromkeys(_NETS, f"{_CFF} --margin-first 0 --margin-last 0"),
    "CFL total-B": {_MLP: "cfl-fc --groups 4", _CONV: "cfl-conv256"},
    "CFL total-D": {_MLP: "cfl-fc-d --groups 4", _CONV: "cfl-conv256-d"},
    "DC-FL": {_MLP: "dcl-fc --groups 4", _CONV: "dcl-conv256"},
    "FF": {_MLP: f"ff-mlp-mnist {_LABEL}"},
    "SymBa": {_MLP: f"symba-mlp-mnist {_LABEL}"},
    "FF Collab": {_MLP: f"ff-collab-mlp-mnist {_LABEL}"},
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
