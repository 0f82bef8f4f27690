"""Dictionary contrastive learning: seed 003's nets with its hyperparameters (methods.md §4).

Where neither names one, the value is that of contrastive forward learning (seed 000, Table 5) for FC and conv, and that
of VGG8b for the block-wise nets.
"""

from __future__ import annotations

from dataclasses import replace

from launch.presets.base import Preset
from launch.presets.cfl import CONV_TRAIN, FC, FC_TRAIN, NAMES, WITH_FL, on
from pipeline.embeddings import EmbeddingSettings
from pipeline.nets import ConvSettings, MixerSettings, MlpSettings, Net, ResnetSettings, VggSettings, VitSettings
from pipeline.rules import DclSettings
from pipeline.settings import Settings, TrainSettings

_METHOD = DclSettings()

_MODES = """Whose gradients change the dictionary: --embedding-mode shared-sum (DC-FL, the authors' program),
shared-mean (as DistributedDataParallel does), last (DC-FL-O), per-layer (DC-FL-LD), static (DCL-S).
--similarity cosine: with temperature 0.07. The same net by backprop and feedback alignment: --baseline bp, fa, dfa."""


def _block_train(lr: float = 5e-4) -> TrainSettings:
    """VGG8b's: batch 128, the learning rate quartered four times in 400 epochs."""
    return TrainSettings(
        epochs=400, batch_size=128, lr=lr, milestones=(200, 300, 350, 375), lr_decay=0.25, keep="accuracy"
    )


def _preset(
    title: str, runs: dict[str, Settings], *, paper: str, reported: str = "", sets: str = "cifar10 (unless named)"
) -> Preset:
    return Preset(
        title=f"Dictionary contrastive learning, {title}",
        reported=reported,
        paper=f"{paper}\n--data chooses the hyperparameters of {sets}.\n{_MODES}",
        settings=runs["cifar10"],
        variants=runs,
    )


def _runs(nets: dict[str, Net], train: dict[str, TrainSettings]) -> dict[str, Settings]:
    return {data: on(data, net=nets[data], train=train[data], method=_METHOD, head=WITH_FL) for data in nets}


_FC: dict[str, Net] = FC | {"cifar10": MlpSettings(width=3072, depth=2, groups=48, norm="layer")}
_SETS = "cifar10 (unless named), mnist and cifar100"

PRESETS: dict[str, Preset] = {
    "dcl-fc": _preset(
        "FC", _runs(_FC, FC_TRAIN), sets=_SETS, paper="FC of the paper: K = 8, 48, 12 for MNIST, CIFAR-10, CIFAR-100."
    ),
}
for _name, _channels in (("conv256", (64, 256)), ("conv512", (64, 256, 512))):
    PRESETS[f"dcl-{_name}"] = _preset(
        _name,
        _runs(dict.fromkeys(NAMES, ConvSettings(channels=_channels, first_padding=1)), CONV_TRAIN),
        sets=_SETS,
        paper=f"{_name} with padding 1 in the first convolution.",
    )

_VGG = on("cifar10", net=VggSettings(dropout=0.05), train=_block_train(), method=_METHOD, head=WITH_FL)
PRESETS["dcl-vgg8b"] = _preset(
    "VGG8b",
    {
        data: replace(
            on("mnist" if data == "mnist" else "cifar10", net=_VGG.net, method=_METHOD, head=WITH_FL),
            data=replace(_VGG.data, data=data),
            train=_block_train(3e-4 if data == "svhn" else 5e-4),
        )
        for data in ("cifar10", "mnist", "fashion-mnist", "cifar100", "svhn", "stl10")
    },
    sets="cifar10 (unless named), mnist, fashion-mnist, cifar100, svhn and stl10",
    reported="error CIFAR-10 8.64, MNIST 0.33, Fashion-MNIST 5.52, CIFAR-100 31.75",
    paper="""Test error in the paper:
              MNIST  Fashion-MNIST  CIFAR-10  CIFAR-100  SVHN  STL-10
  DC-FL       0.33   5.52           8.64      31.75      2.19  22.87
  DC-FL-O     0.32   5.39           8.68      34.58      2.18  23.56   --embedding-mode last
  DC-FL-LD    0.34   5.50           8.45      31.64      2.19  22.59   --embedding-mode per-layer""",
)

_WIDE = replace(_METHOD, embedding=EmbeddingSettings(embedding_mode="shared-sum", embedding_width=512))
for _name, _title, _net, _error, _backprop in (
    ("resnet32", "block-wise ResNet-32", ResnetSettings(), 25.19, 6.70),
    ("vit", "block-wise ViT[256 4 6]", VitSettings(dim=256, heads=4, depth=6), 32.63, 16.25),
    ("mixer", "block-wise MLP-Mixer", MixerSettings(), 23.51, 17.23),
):
    PRESETS[f"dcl-{_name}"] = _preset(
        _title,
        {"cifar10": on("cifar10", net=_net, train=_block_train(), method=_WIDE, head=WITH_FL)},
        reported=f"error CIFAR-10 {_error}",
        paper=f"Test error in the paper (Table 8), CIFAR-10: {_error}; backprop {_backprop}. Embeddings are 512 long.",
    )
