"""Local learning with auxiliary nets: InfoPro, also as Choi et al. 2024 compare with it, AugLocal, DGL and PredSim.

Optimizer, schedule, crop and flip are those of the programs (github.com/blackfeather-wang/InfoPro-Pytorch,
github.com/ChenxiangMA/AugLocal). They have no validation images and report the best test accuracy; here 10 % of the
training images choose the epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from launch.presets.base import Preset
from launch.presets.dcl import block_train
from launch.presets.papers import AUGLOCAL, DCL, DGL, INFOPRO, PREDSIM, Paper
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import AuglocalSettings, DglSettings, InfoproSettings, PredsimSettings
from pipeline.methods.auxiliary import AuxiliaryMethod
from pipeline.nets import ResnetSettings, VggSettings

_BY_ITSELF = ReadoutSettings(mode="none")
"""The last module has the net's classifier, and others that of their auxiliary net."""

_SGD = TrainSettings(
    epochs=400,
    batch_size=1024,
    lr=0.8,
    optimizer="sgd",
    weight_decay=1e-4,
    lr_schedule="cosine",
    warmup_epochs=10,
    last_batch="keep",
    keep="accuracy",
)
"""SGD of both programs; InfoPro's trains 160 epochs, AugLocal's 400."""

_TWIN = "The same net by backprop: --baseline bp; with the same auxiliary nets, deep supervision: --baseline bp-deep."


def _resnet(depth: int, method: AuxiliaryMethod, epochs: int = 400) -> Settings:
    return Settings(
        data=DataSettings(data="cifar10"),
        # The programs count the first convolution as a layer of its own: 16 of ResNet-32, 55 of ResNet-110.
        net=ResnetSettings(depth=depth, stem="alone"),
        method=method,
        train=replace(_SGD, epochs=epochs),
        readout=_BY_ITSELF,
    )


def _infopro(first: tuple[float, float], last: tuple[float, float], modules: int | Literal["all"]) -> InfoproSettings:
    (reconstruction_first, task_first), (reconstruction_last, task_last) = first, last
    return InfoproSettings(
        modules=modules,
        reconstruction_first=reconstruction_first,
        task_first=task_first,
        reconstruction_last=reconstruction_last,
        task_last=task_last,
    )


def _vgg(name: str, what: str, method: InfoproSettings, reported: str, paper: str) -> Preset:
    settings = Settings(
        data=DataSettings(data="cifar10"),
        net=VggSettings(),
        method=method,
        train=block_train(),
        readout=_BY_ITSELF,
    )
    # The parameters that Choi et al. 2024 count beside the net, 0.918 million with MNIST and 1.84 with CIFAR-10, are
    # those of seven linear maps of 1,024 and of 2,048 values to 128.
    fewer = replace(settings, method=replace(method, pooled_width=1024))
    return Preset(
        title=f"{name}: local learning by InfoPro, {what}, VGG8b, CIFAR-10",
        source=INFOPRO,
        reported=reported,
        paper=f"""{paper}
Net, augmentation and schedule are those of dcl-vgg8b, as {DCL.short} have them; the first six layers have auxiliary
nets, the fully connected one learns by the net's classifier. The method is that of {INFOPRO.short}, whose heads are
--head 1c2f. {_TWIN}""",
        settings=settings,
        variants={name: replace(fewer, data=DataSettings(data=name)) for name in ("mnist", "fashion-mnist")},
    )


_LL = f"Test error in {DCL.short}, CIFAR-10: LL-cont 7.72, LL-contrec 9.02; DC-FL 8.64."

PRESETS: dict[str, Preset] = {
    "infopro-vgg8b-cont": _vgg("LL-cont", "contrast", InfoproSettings(head="linear"), "error 7.72", _LL),
    "infopro-vgg8b-contrec": _vgg(
        "LL-contrec",
        "contrast and reconstruction",
        InfoproSettings(head="linear", reconstruction_first=1, reconstruction_last=1),
        "error 9.02",
        f"{_LL}\nThe weights of contrast and reconstruction are ours, 1 and 1: the paper does not say them.",
    ),
    "infopro-vgg8b-pred": _vgg(
        "LL-pred",
        "prediction",
        InfoproSettings(head="linear", task="predict"),
        "",
        "No row of a paper that is known to us.",
    ),
    "infopro-resnet32": Preset(
        title="InfoPro, ResNet-32 in 16 modules, CIFAR-10",
        source=INFOPRO,
        paper=f"""Each layer is a module. Loss, weights and schedule are those of the program of {AUGLOCAL.short}, which
compares with it: heads predict. With --task contrast as {INFOPRO.short} have it, whose weights for other modules are
  --modules 2  --reconstruction-first 5 --task-first 1 --reconstruction-last 5 --task-last 1
  --modules 4  --reconstruction-first 6 --task-first 0 --reconstruction-last 1 --task-last 2
  --modules 8  --reconstruction-first 5 --task-first 0 --reconstruction-last 0 --task-last 2
{_TWIN}""",
        settings=_resnet(32, replace(_infopro((5, 0.05), (0.2, 0.5), "all"), task="predict")),
    ),
    "infopro-resnet110": Preset(
        title="InfoPro, ResNet-110 in 2 modules, CIFAR-10",
        source=INFOPRO,
        reported="error 6.42 with 2 modules, 9.90 with 16",
        paper=f"""Test error in {INFOPRO.short}, CIFAR-10, ResNet-110; backprop 6.50:
  --modules 2   6.42
  --modules 4   7.30   --reconstruction-first 1 --task-first 0 --reconstruction-last 0   --task-last 1
  --modules 8   8.93   --reconstruction-first 5 --task-first 0 --reconstruction-last 0   --task-last 1
  --modules 16  9.90   --reconstruction-first 5 --task-first 0 --reconstruction-last 0.5 --task-last 1
{_TWIN}""",
        settings=_resnet(110, _infopro((5, 0.5), (5, 0.5), 2), epochs=160),
    ),
}


def _layerwise(name: str, source: Paper, title: str, method: AuxiliaryMethod, paper: str, depth: int = 32) -> None:
    PRESETS[f"{name}-resnet{depth}"] = Preset(
        title=f"{title}, ResNet-{depth}, CIFAR-10",
        source=source,
        paper=f"""The method of {source.short}: {paper} Settings are those of the program of
{AUGLOCAL.short}. {_TWIN}""",
        settings=_resnet(depth, method),
    )


for _depth, _aux in ((32, 2), (110, 3)):
    _layerwise(
        "auglocal",
        AUGLOCAL,
        "AugLocal",
        AuglocalSettings(aux_depth=_aux),
        f"of {(_depth - 2) // 2 + 1} layers the last {_aux + 1} learn together. --aux-depth: deeper auxiliary nets.",
        _depth,
    )
_layerwise("dgl", DGL, "Decoupled greedy learning", DglSettings(), "each layer is a module that predicts.")
_layerwise("predsim", PREDSIM, "PredSim", PredsimSettings(), "each layer predicts, and matches similarities.")
