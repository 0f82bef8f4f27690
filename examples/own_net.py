"""A network of one's own, trained by Contrastive Forward-Forward in this process, without Ray.

python examples/own_net.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pipeline import Settings, train
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, TrainSettings
from pipeline.kind import Kind
from pipeline.methods import CffSettings
from pipeline.nets import NETS, Layer, NetConfig, Shape


@NETS.register
@dataclass(frozen=True, kw_only=True)
class BottleneckSettings(NetConfig):
    """Fully connected layers that get narrower."""

    kind: ClassVar[str] = "bottleneck"
    widths: tuple[int, ...] = (64, 48, 32)

    @property
    def num_layers(self) -> int:
        return len(self.widths)

    def describe(self) -> str:
        return f"Bottleneck{list(self.widths)}"

    def build(self, index: int, shape: Shape) -> Layer:
        channels, height, width = shape
        return BottleneckLayer((channels * height * width, *self.widths)[index], self.widths[index])


class BottleneckLayer(Layer):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.features = width
        self.linear = nn.Linear(inputs, width)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.linear(x.flatten(1)))

    def tokens(self, x: Tensor) -> Tensor:
        return x[:, None]  # (N, 1, C): one feature vector an image


result = train(
    Settings(
        data=DataSettings(data="digits"),
        net=BottleneckSettings(),
        method=CffSettings(views=1),
        train=TrainSettings(epochs=5, batch_size=64),
        readout=ReadoutSettings(readout_epochs=5),
        pipeline=PipelineSettings(executor="threads", stages=3),
    )
)
for number, layer in enumerate(result.history.layers(Kind.TEST, 0) or [], start=1):
    print(f"layer {number}: test accuracy {layer.accuracy:.1%}")
