"""Dictionary contrastive learning (Choi et al. 2024): its nets with its hyperparameters.

Where the paper and its authors' program name none, the value is that of contrastive forward learning (Anonymous 2023,
Table 5) for FC and conv, and that of VGG8b for the block-wise nets.
"""

from __future__ import annotations

import math
from dataclasses import replace

from launch.presets.base import Preset
from launch.presets.cfl import CONV_TRAIN, FC_READOUT, FC_TRAIN, NAMES, WITH_FL, on
from launch.presets.papers import DCL
from pipeline.config.settings import AugmentSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import DclSettings
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import ConvSettings, MixerSettings, MlpSettings, NetConfig, ResnetSettings, VggSettings, VitSettings

_METHOD = DclSettings()

_MODES = """Whose gradients change the label embeddings: --embedding-mode in-turn (DC-FL, as the authors' program trains
it), last (DC-FL-O), per-layer (DC-FL-LD), static (DCL-S), and of ours shared-sum, shared-mean: one optimizer's step on
the sum or mean of all layers' gradients.
--similarity cosine: with temperature 0.07. The same net by backprop and feedback alignment: --baseline bp, fa, dfa."""


def block_train(epochs: int = 400, lr: float = 5e-4) -> TrainSettings:
    """VGG8b's: batch 128, the learning rate quartered after 1/2, 3/4, 7/8 and 15/16 of the epochs."""
    milestones = tuple(math.ceil(epochs * share) for share in (1 / 2, 3 / 4, 7 / 8, 15 / 16))
    return TrainSettings(epochs=epochs, batch_size=128, lr=lr, milestones=milestones, lr_decay=0.25, keep="accuracy")


def _preset(
    title: str, runs: dict[str, Settings], *, paper: str, reported: str = "", sets: str = "cifar10 (unless named)"
) -> Preset:
    return Preset(
        title=f"Dictionary contrastive learning, {title}",
        source=DCL,
        reported=reported,
        paper=f"{paper}\n--data chooses the hyperparameters of {sets}.\n{_MODES}",
        settings=runs["cifar10"],
        variants=runs,
    )


def _runs(
    nets: dict[str, NetConfig], train: dict[str, TrainSettings], readout: ReadoutSettings = WITH_FL
) -> dict[str, Settings]:
    return {data: on(data, net=nets[data], train=train[data], method=_METHOD, readout=readout) for data in nets}


# As in the authors' program, every linear map but the first has a LayerNorm in front, the final one's too.
_FC: dict[str, NetConfig] = {
    "cifar10": MlpSettings(width=3072, depth=2, groups=48, norm="before"),
    "mnist": MlpSettings(width=1024, depth=2, groups=8, norm="before"),
    "cifar100": MlpSettings(width=3072, depth=2, groups=12, norm="before", dropout=0.3),
}
_SETS = "cifar10 (unless named), mnist and cifar100"

PRESETS: dict[str, Preset] = {
    "dcl-fc": _preset(
        "FC",
        _runs(_FC, FC_TRAIN, FC_READOUT),
        sets=_SETS,
        paper=f"""A net of {DCL.short}: three layers, the final one included.
K = 48, 8, 12 for CIFAR-10, MNIST, CIFAR-100.""",
    ),
}
for _name, _channels in (("conv256", (64, 256)), ("conv512", (64, 256, 512))):
    PRESETS[f"dcl-{_name}"] = _preset(
        _name,
        _runs(dict.fromkeys(NAMES, ConvSettings(channels=_channels, first_padding=1)), CONV_TRAIN),
        sets=_SETS,
        paper=f"A net of {DCL.short}: {_name} with padding 1 in the first convolution.",
    )


def _vgg(data: str, dropout: float, epochs: int, lr: float = 5e-4) -> Settings:
    run = on(data, net=VggSettings(dropout=dropout), train=block_train(epochs, lr), method=_METHOD, readout=WITH_FL)
    auto = AugmentSettings(crop_padding=0, flip="auto") if data in ("fashion-mnist", "svhn") else run.augment
    return replace(run, augment=auto)


PRESETS["dcl-vgg8b"] = _preset(
    "VGG8b",
    # Dropout, epochs and learning rate of each data set are those of the authors' program (github.com/schoi828/DCL).
    {
        "cifar10": _vgg("cifar10", 0.05, 400),
        "cifar100": _vgg("cifar100", 0.05, 400),
        "mnist": _vgg("mnist", 0.1, 100),
        "fashion-mnist": _vgg("fashion-mnist", 0.1, 200),
        "svhn": _vgg("svhn", 0.05, 100, 3e-4),
        "stl10": _vgg("stl10", 0.1, 400),
    },
    sets="cifar10 (unless named), mnist, fashion-mnist, cifar100, svhn and stl10",
    reported="error CIFAR-10 8.64, MNIST 0.33, Fashion-MNIST 5.52, CIFAR-100 31.75",
    paper=f"""Test error in {DCL.short}:
              MNIST  Fashion-MNIST  CIFAR-10  CIFAR-100  SVHN  STL-10
  DC-FL       0.33   5.52           8.64      31.75      2.19  22.87
  DC-FL-O     0.32   5.39           8.68      34.58      2.18  23.56   --embedding-mode last
  DC-FL-LD    0.34   5.50           8.45      31.64      2.19  22.59   --embedding-mode per-layer""",
)

_WIDE = replace(_METHOD, embedding=EmbeddingSettings(embedding_mode="in-turn", embedding_width=512))
for _name, _title, _net, _error, _backprop in (
    ("resnet32", "block-wise ResNet-32", ResnetSettings(), 25.19, 6.70),
    ("vit", "block-wise ViT[256 4 6]", VitSettings(dim=256, heads=4, depth=6), 32.63, 16.25),
    ("mixer", "block-wise MLP-Mixer", MixerSettings(), 23.51, 17.23),
):
    PRESETS[f"dcl-{_name}"] = _preset(
        _title,
        {"cifar10": on("cifar10", net=_net, train=block_train(), method=_WIDE, readout=WITH_FL)},
        reported=f"error CIFAR-10 {_error}",
        paper=f"""Test error in {DCL.short} (Table 8), CIFAR-10: {_error}; backprop {_backprop}.
Embeddings are 512 long.""",
    )
