"""Forward-Forward and two methods made of it, as Aghagolzadeh & Ezoji 2025 compare them with theirs (Tables 1 and 2).

Batch, optimizer and validation are the paper's; its program trains none of the three, and the rest it does not say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from launch.presets.base import Preset
from launch.presets.papers import CFF, COLLAB, FF, SYMBA, Paper
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CollabSettings, FfSettings, SymbaSettings
from pipeline.methods.goodness import GoodnessMethod
from pipeline.nets import MlpSettings, VitSettings


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A column of the paper's tables, on the data sets of their rows."""

    title: str
    method: GoodnessMethod
    mlp_later_lr: float = 10.0
    source: Paper
    mlp_mnist: str
    mlp_cifar10: str
    vit_cifar10: str
    vit_cifar10_head: str
    vit_cifar100: str
    vit_tiny_imagenet: str


_ROWS = {
    "ff": _Row(
        title="Forward-Forward",
        method=FfSettings(),
        source=FF,
        mlp_mnist="97.12",
        mlp_cifar10="50.35",
        vit_cifar10="76.21",
        vit_cifar10_head="65.33",
        vit_cifar100="72.15",
        vit_tiny_imagenet="62.11",
    ),
    "symba": _Row(
        title="SymBa",
        method=SymbaSettings(),
        source=SYMBA,
        mlp_mnist="97.82",
        mlp_cifar10="56.80",
        vit_cifar10="69.13",
        vit_cifar10_head="60.15",
        vit_cifar100="68.78",
        vit_tiny_imagenet="59.46",
    ),
    "ff-collab": _Row(
        title="FF Collab",
        method=CollabSettings(),
        mlp_later_lr=1.0,  # at 10 the last layer's units die
        source=COLLAB,
        mlp_mnist="97.70",
        mlp_cifar10="54.33",
        vit_cifar10="70.66",
        vit_cifar10_head="",
        vit_cifar100="71.79",
        vit_tiny_imagenet="62.15",
    ),
}

_WITHOUT_HEAD = ReadoutSettings(mode="none", readout_layers="last", readout_keep="best")
_TRAIN = TrainSettings(last_batch="keep")
_OURS = "The paper gives batch 512, AdamW and 10 % of the images for validation; epochs and learning rate here are"


def _presets(name: str, row: _Row) -> dict[str, Preset]:
    mlp = Settings(
        data=DataSettings(data="mnist"),
        net=MlpSettings(width=500, depth=3),
        method=replace(row.method, later_lr=row.mlp_later_lr),
        train=replace(_TRAIN, lr=3e-3, epochs=60),
        readout=_WITHOUT_HEAD,
    )
    vit = replace(
        mlp,
        method=row.method,
        data=DataSettings(data="cifar10"),
        net=VitSettings(dim=128, heads=4, depth=5),
        train=_TRAIN,
    )
    head = f"\nWith a linear head, --readout after: {row.vit_cifar10_head} (Table 2)." if row.vit_cifar10_head else ""
    return {
        f"{name}-mlp-mnist": Preset(
            title=f"{row.title}, MLP[500 3], MNIST",
            source=row.source,
            reported=f"accuracy {row.mlp_mnist}",
            paper=f"""Test accuracy of {row.title} in {CFF.short} (Table 1):
  MNIST, MLP[500 3]     {row.mlp_mnist}
  CIFAR-10, MLP[800 4]  {row.mlp_cifar10}   --data cifar10 --width 800 --depth 4
{_OURS} ours. The method is that of {row.source.short}.""",
            settings=mlp,
        ),
        f"{name}-vit-mnist": Preset(
            title=f"{row.title}, ViT[128 4 5], MNIST",
            source=row.source,
            paper=f"""The net of {CFF.short} on a data set on which the paper has none but MLPs.
{_OURS} those of its CFF. The method is that of {row.source.short}.""",
            settings=replace(vit, data=DataSettings(data="mnist")),
        ),
        f"{name}-vit-cifar10": Preset(
            title=f"{row.title}, ViT[128 4 5], CIFAR-10",
            source=row.source,
            reported=f"accuracy {row.vit_cifar10}",
            paper=f"""Test accuracy of {row.title} in {CFF.short} (Table 1), top-5 on CIFAR-100, top-10 on
Tiny ImageNet:
  CIFAR-10, ViT[128 4 5]       {row.vit_cifar10}
  CIFAR-100, ViT[192 6 6]      {row.vit_cifar100}   --data cifar100 --dim 192 --heads 6 --depth 6
  Tiny ImageNet, ViT[240 6 7]  {row.vit_tiny_imagenet}   --data tiny-imagenet --dim 240 --heads 6 --depth 7{head}
An evaluation takes every image once for each class, so that many classes need a smaller --batch-size.
{_OURS} those of its CFF. The method is that of {row.source.short}.""",
            settings=vit,
        ),
    }


PRESETS: dict[str, Preset] = {
    name: preset for family, row in _ROWS.items() for name, preset in _presets(family, row).items()
}
