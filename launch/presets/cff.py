"""Contrastive Forward-Forward (Aghagolzadeh & Ezoji 2025, Tables 1 and 3). Values not named here are the paper's."""

from __future__ import annotations

from dataclasses import replace

from launch.presets.base import Preset
from launch.presets.papers import CFF
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CffSettings
from pipeline.nets import MlpSettings, VitSettings

# As the authors' program does: every image of an epoch is trained on, validation sees augmented views as training does,
# and of the classifier's epochs the best one on validation images is kept.
_TRAIN = TrainSettings(last_batch="keep", validation_views="augmented")
_READOUT = ReadoutSettings(readout_keep="best")

_VIT_CIFAR10 = Settings(
    data=DataSettings(data="cifar10"),
    net=VitSettings(dim=128, heads=4, depth=5),
    train=_TRAIN,
    readout=_READOUT,
)

_MLP_SETTINGS = """The paper does not give the MLP's hyperparameters and its program for it is not published: with the
ViT's settings the authors' own loop stays below these figures."""

_SOONER = """Sooner at an accuracy, and not the paper's: --readout online --readout-lr 5e-3, and where images are not
augmented --views 1, as a second view would be the same image. docs/benchmarks.md says how much (Time to accuracy)."""

PRESETS: dict[str, Preset] = {
    "cff-vit": Preset(
        title="Contrastive Forward-Forward, ViT[64 4 4], on scikit-learn's digits: the quick look",
        source=CFF,
        paper=f"""The method of {CFF.short}, but no row of its tables: 8×8 digits, small enough for a laptop
in a minute. Any other data set works too: --data mnist, --data FOLDER. The paper's own runs are the other presets
whose names begin with cff.""",
        settings=Settings(
            data=DataSettings(data="digits"),
            net=VitSettings(dim=64, heads=4, depth=4),
            train=TrainSettings(epochs=60, batch_size=64),
            readout=ReadoutSettings(readout_epochs=20, readout_lr=5e-3),
        ),
    ),
    "cff-vit-cifar10": Preset(
        title="Contrastive Forward-Forward, ViT[128 4 5], CIFAR-10",
        source=CFF,
        reported="accuracy 80.42",
        paper=f"""Test accuracy in {CFF.short}, CFF+M (Table 3):
  ViT[128 4 5]  80.42   with --randaugment-ops 3  81.73
  ViT[192 6 6]  79.74   with --randaugment-ops 3  85.17   --dim 192 --heads 6 --depth 6
  ViT[240 6 7]  79.96   with --randaugment-ops 3  85.37   --dim 240 --heads 6 --depth 7
Plain CFF, ViT[128 4 5] (Table 1): 78.70, with --margin-first 0 --margin-last 0.
Class token (Table 5): 76.63, with --randaugment-ops 3 --pooling token. One-forward (Table 6): 1.42 less, --views 1.
Random crop: padding 4, as in every version of the authors' program up to 2025-04; later ones: --crop-padding 12.""",
        settings=_VIT_CIFAR10,
    ),
    "cff-vit-cifar100": Preset(
        title="Contrastive Forward-Forward, ViT[192 6 6], CIFAR-100",
        source=CFF,
        reported="top-5 80.39",
        paper=f"""Top-5 test accuracy in {CFF.short}, CFF+M (Table 3):
  ViT[192 6 6]  80.39   with --randaugment-ops 3  84.28
  ViT[240 6 7]  78.44   with --randaugment-ops 3  84.29   --dim 240 --heads 6 --depth 7
Plain CFF, ViT[192 6 6] (Table 1): 79.23, with --margin-first 0 --margin-last 0.""",
        settings=replace(_VIT_CIFAR10, data=DataSettings(data="cifar100"), net=VitSettings(dim=192, heads=6, depth=6)),
    ),
    "cff-vit-tiny-imagenet": Preset(
        title="Contrastive Forward-Forward, ViT[240 6 7], Tiny ImageNet",
        source=CFF,
        reported="top-10 73.23",
        paper=f"""Top-10 test accuracy in {CFF.short}, CFF+M (Table 3):
  ViT[240 6 7]  73.23   with --randaugment-ops 3  76.06
Plain CFF (Table 1): 72.43, with --margin-first 0 --margin-last 0.""",
        settings=replace(
            _VIT_CIFAR10, data=DataSettings(data="tiny-imagenet"), net=VitSettings(dim=240, heads=6, depth=7)
        ),
    ),
    "cff-mlp-mnist": Preset(
        title="Contrastive Forward-Forward, MLP[500 3], MNIST",
        source=CFF,
        reported="accuracy 97.69 or 97.30, settings unpublished",
        paper=f"""Test accuracy in {CFF.short}, CFF+M: the paper contradicts itself,
  MLP[500 3]  97.69 (Table 1), 97.30 (Table 3)
  MLP[800 4]  97.62 (Table 3)   --width 800 --depth 4
Plain CFF, MLP[500 3] (Table 1): 96.33, with --margin-first 0 --margin-last 0.
{_MLP_SETTINGS} Temperature 0.05 and learning rate 1e-3 are ours.
{_SOONER}""",
        settings=Settings(
            data=DataSettings(data="mnist"),
            net=MlpSettings(width=500, depth=3),
            method=CffSettings(temperature=0.05),
            train=replace(_TRAIN, lr=1e-3),
            readout=_READOUT,
        ),
    ),
    "cff-mlp-cifar10": Preset(
        title="Contrastive Forward-Forward, MLP[800 4], CIFAR-10",
        source=CFF,
        reported="accuracy 57.33, settings unpublished",
        paper=f"""Test accuracy in {CFF.short}, CFF+M, MLP[800 4]:
  57.33 with random crop (Table 1); 54.55 with --crop-padding 0 (Table 3)
Plain CFF (Table 1): 54.32, with --margin-first 0 --margin-last 0.
{_MLP_SETTINGS} The settings here are the ViT's.""",
        settings=replace(_VIT_CIFAR10, net=MlpSettings(width=800, depth=4)),
    ),
}
