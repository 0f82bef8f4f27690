"""The nets whose training step `launch doctor costs` measures, on random images: no data set is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from pipeline.config.build import expand_baseline
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Compile, Graphs, PipelineSettings, Precision, Settings, TrainSettings
from pipeline.data.augment import AugmentConfig
from pipeline.methods import AuglocalSettings, CffSettings, DclSettings, InfoproSettings, MethodConfig
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import NetConfig, ResnetSettings, Shape, VggSettings, VitSettings
from pipeline.nets.sizes import layer_features

Learning = Literal["local", "backprop"]

_CIFAR: Shape = (3, 32, 32)
_STEPS_PER_EPOCH = 1000  # more than are made: no epoch ends


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A net and the method that trains it.

    Attributes:
        shape: of the images (C, H, W).
        batch: images of a step, unless asked for otherwise.
    """

    net: NetConfig
    method: MethodConfig
    shape: Shape = _CIFAR
    classes: int = 10
    batch: int = 512


_CFF = CffSettings(views=1)
_DCL = DclSettings()
_LL_CONT = InfoproSettings(head="linear")
WORKLOADS: Mapping[str, Workload] = MappingProxyType(
    {
        "vit-128": Workload(net=VitSettings(dim=128, heads=4, depth=5), method=_CFF),
        "vit-128-two-views": Workload(net=VitSettings(dim=128, heads=4, depth=5), method=replace(_CFF, views=2)),
        "vit-240": Workload(net=VitSettings(dim=240, heads=6, depth=7), method=_CFF),
        "vit-b-224": Workload(
            net=VitSettings(dim=768, heads=12, depth=12, patch=16),
            method=_CFF,
            shape=(3, 224, 224),
            classes=1000,
            batch=128,
        ),
        "resnet32": Workload(
            net=ResnetSettings(),
            method=replace(_DCL, embedding=EmbeddingSettings(embedding_mode="in-turn", embedding_width=512)),
            batch=128,
        ),
        "vgg8b": Workload(net=VggSettings(), method=_DCL, batch=128),
        "vgg8b-ll-cont": Workload(net=VggSettings(), method=_LL_CONT, batch=128),
        "vgg8b-ll-contrec": Workload(
            net=VggSettings(), method=replace(_LL_CONT, reconstruction_first=1, reconstruction_last=1), batch=128
        ),
        "resnet32-auglocal": Workload(net=ResnetSettings(stem="alone"), method=AuglocalSettings(), batch=128),
    }
)
"""By name. CIFAR's size of images, ViT-B's apart."""


def spec_of(
    workload: Workload,
    *,
    device: str,
    learning: Learning,
    precision: Precision,
    compile_: Compile,
    graphs: Graphs,
    batch: int,
) -> RunSpec:
    """The run of one stage that makes such steps."""
    pipe = PipelineSettings(
        executor="serial",
        stages=1,
        device="cuda" if device == "cuda" else "cpu",
        precision=precision,
        compile=compile_,
        graphs=graphs,
        transport="gloo",
    )
    settings = Settings(
        preset="doctor",
        net=workload.net.resolve(workload.shape),
        method=workload.method,
        train=TrainSettings(epochs=1, batch_size=batch, lr=1e-3),
        pipeline=pipe,
    )
    if learning == "backprop":
        settings = expand_baseline(replace(settings, baseline="bp"))
    method = settings.method.resolve(layer_features(settings.method.adapt(settings.net), workload.shape))
    settings = replace(settings, method=method)
    num_layers = settings.method.adapt(settings.net).num_layers
    channels = workload.shape[0]
    return RunSpec(
        settings=settings,
        data_folder="",
        data_name="random images",
        content_hash="",
        shape=workload.shape,
        num_images=(_STEPS_PER_EPOCH * batch, 0),
        classes=tuple(map(str, range(workload.classes))),
        augment=AugmentConfig(crop_padding=4, flip=True, mean=(0.5,) * channels, std=(0.25,) * channels),
        top_k=1,
        steps_per_epoch=_STEPS_PER_EPOCH,
        stages=(range(num_layers),),
        device=device,
    )
