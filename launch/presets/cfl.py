"""Contrastive forward learning with label embeddings (Anonymous 2023): each CFL row of Table 1, and the ViT of Table 6.

Nets and hyperparameters are those of Tables 4 and 5. The paper says nothing about augmentation: on CIFAR images are
cropped (padding 4) and flipped, as in the program of dictionary contrastive learning (Choi et al. 2024;
github.com/schoi828/DCL).
"""

from __future__ import annotations

from dataclasses import replace

from launch.presets.base import Preset
from launch.presets.papers import CFL
from pipeline.config.settings import AugmentSettings, DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CflSettings
from pipeline.nets import ConvSettings, MlpSettings, NetConfig, VitSettings

DATA = ("cifar10", "mnist", "cifar100")
"""The paper's data sets; a preset's own is the first."""

NAMES = {"cifar10": "CIFAR-10", "mnist": "MNIST", "cifar100": "CIFAR-100"}

# Table 4. MNIST's label embeddings are 98 long there, shorter than the 1024 / 8 features that they are pooled to; ours
# are 128.
# As in the authors' program a LayerNorm stands in front of every linear layer, the first and the final one included.
_FC: dict[str, NetConfig] = {
    "mnist": MlpSettings(width=1024, depth=2, groups=8, norm="before-all"),
    "cifar10": MlpSettings(width=3072, depth=2, groups=24, norm="before-all"),
    "cifar100": MlpSettings(width=3072, depth=2, groups=12, norm="before-all", dropout=0.3),
}
_CONV256: dict[str, NetConfig] = dict.fromkeys(DATA, ConvSettings(channels=(64, 256)))
_CONV512: dict[str, NetConfig] = dict.fromkeys(DATA, ConvSettings(channels=(64, 256, 512)))


def schedule(epochs: int, lr: float, *milestones: int) -> TrainSettings:
    """A row of Table 5: AdamW, batch 512, the learning rate halved at each milestone."""
    return TrainSettings(epochs=epochs, batch_size=512, lr=lr, milestones=milestones, lr_decay=0.5, keep="accuracy")


# Table 5.
FC_TRAIN = {
    "mnist": schedule(150, 5e-4, 50, 100, 125),
    "cifar10": schedule(400, 2e-4, 50, 150, 200, 350),
    "cifar100": schedule(200, 1e-4, 50, 100, 150),
}
CONV_TRAIN = {
    "mnist": schedule(150, 7.5e-3, 50, 75, 100, 125),
    "cifar10": schedule(500, 7.5e-3, 100, 200, 300, 400, 450),
    "cifar100": schedule(400, 7.5e-3, 100, 200, 250, 300, 350),
}
_CONV512_TRAIN = CONV_TRAIN | {"cifar100": schedule(200, 7.5e-3, 50, 75, 100, 125, 150)}

TOTAL_B = CflSettings(batch_weight=1, dictionary_weight=0, feature_weight=1)
TOTAL_D = CflSettings(batch_weight=0, dictionary_weight=1, feature_weight=1)

WITH_FL = ReadoutSettings(mode="online", readout_layers="last", readout_norm=False, readout_lr="lr")
"""The final linear layer f^L: learns with the layers, by cross-entropy on detached features."""
FC_READOUT = replace(WITH_FL, readout_norm=True)
"""The same behind a LayerNorm, as the authors' program has it for fully connected nets."""
WITHOUT_FL = ReadoutSettings(mode="none")
"""Prediction by similarity to the label embeddings (eq. 1)."""


def on(data: str, **parts: object) -> Settings:
    """A run on one of the data sets of CFL's and DCL's papers."""
    augment = AugmentSettings(crop_padding=0, flip="off") if data == "mnist" else AugmentSettings(crop_padding=4)
    return replace(Settings(data=DataSettings(data=data), augment=augment), **parts)  # type: ignore[arg-type]


def reported(errors: tuple[float | None, ...], data: tuple[str, ...] = DATA) -> str:
    """The paper's test errors, for lists."""
    known = [f"{NAMES[name]} {error}" for name, error in zip(data, errors, strict=True) if error is not None]
    return "error " + ", ".join(known)


_ABLATIONS = """Ablations (Table 3): --embedding-noise 0 (no noise), --feature-weight 0 (no L_feat), --batch-weight 0
--dictionary-weight 0 (L_feat alone), --similarity cosine. Whose gradients change the label embeddings:
--embedding-mode. The same net by backprop and feedback alignment: --baseline bp, fa, dfa."""


def _preset(
    name: str,
    nets: dict[str, NetConfig],
    train: dict[str, TrainSettings],
    *,
    loss: CflSettings,
    readout: ReadoutSettings,
    errors: tuple[float, float, float],
    others: str,
) -> Preset:
    kind = "total-B" if loss is TOTAL_B else "total-D"
    without = ", without f^L" if readout is WITHOUT_FL else ""
    runs = {data: on(data, net=nets[data], train=train[data], method=loss, readout=readout) for data in DATA}
    return Preset(
        title=f"Contrastive forward learning ({kind}{without}), {name}",
        source=CFL,
        reported=reported(errors),
        paper=f"""Test error in {CFL.short} (Table 1): {reported(errors).removeprefix("error ")}.
On the same net: {others}.
--data chooses net and schedule of Tables 4 and 5: cifar10 (unless named), mnist, cifar100.
{_ABLATIONS}""",
        settings=runs["cifar10"],
        variants=runs,
    )


_FC_OTHERS = "backprop 35.96, 1.29, 67.3; FA 39.33, 1.51, 69; DFA 45.55, 1.75, 86.42 (CIFAR-10, MNIST, CIFAR-100)"
_CONV256_OTHERS = "backprop 22.52, 2.63, 48.72; FA 27.65, 2.85, 52.57; DFA 45.83, 9.4, 68.56 (same order)"
_CONV512_OTHERS = "backprop 14.05, 1.31, 46.4; FA 19.67, 1.3, 52.93; DFA 35.7, 4.39, 69.06 (same order)"

PRESETS: dict[str, Preset] = {
    "cfl-fc": _preset(
        "FC", _FC, FC_TRAIN, loss=TOTAL_B, readout=FC_READOUT, errors=(33.97, 1.69, 68.4), others=_FC_OTHERS
    ),
    "cfl-fc-d": _preset(
        "FC", _FC, FC_TRAIN, loss=TOTAL_D, readout=FC_READOUT, errors=(33.78, 1.55, 67.38), others=_FC_OTHERS
    ),
}
for _name, _nets, _train, _others, _rows in (
    (
        "conv256",
        _CONV256,
        CONV_TRAIN,
        _CONV256_OTHERS,
        ((24.24, 2.96, 51.1), (24.56, 2.66, 51.4), (24.77, 2.8, 51.34), (27.5, 2.74, 61.65)),
    ),
    (
        "conv512",
        _CONV512,
        _CONV512_TRAIN,
        _CONV512_OTHERS,
        ((16.31, 1.36, 50.43), (16.49, 1.25, 49.76), (16.67, 1.47, 51.01), (16.84, 1.34, 55.84)),
    ),
):
    for (_suffix, _loss, _readout), _errors in zip(
        (
            ("", TOTAL_B, WITH_FL),
            ("-d", TOTAL_D, WITH_FL),
            ("-no-fl", TOTAL_B, WITHOUT_FL),
            ("-d-no-fl", TOTAL_D, WITHOUT_FL),
        ),
        _rows,
        strict=True,
    ):
        PRESETS[f"cfl-{_name}{_suffix}"] = _preset(
            _name, _nets, _train, loss=_loss, readout=_readout, errors=_errors, others=_others
        )
PRESETS["cfl-vit"] = Preset(
    title="Contrastive forward learning (total-B), ViT[256 4 6]",
    source=CFL,
    reported="error CIFAR-10 37.73",
    paper=f"""Test error in {CFL.short} (Table 6): CIFAR-10 37.73; backprop 23.27 on a ViT of 3.19 million parameters.
The paper gives no other facts: ViT[256 4 6] has 3.19 million too, with the readout. Schedule: conv256's, at lr 5e-4.
{_ABLATIONS}""",
    settings=on(
        "cifar10",
        net=VitSettings(dim=256, heads=4, depth=6),
        train=schedule(500, 5e-4, 100, 200, 300, 400, 450),
        method=TOTAL_B,
        readout=WITH_FL,
    ),
)
