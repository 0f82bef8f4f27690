"""AugLocal: each layer learns through blocks shaped as later layers of its own net (Ma et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pipeline.errors import UserError, shortened
from pipeline.methods.auxiliary import AuxiliaryMethod, AuxiliaryRule
from pipeline.methods.auxiliary_nets import LaterBlocks
from pipeline.methods.base import METHODS, ModelInfo
from pipeline.nets import NETS
from pipeline.nets.base import NetConfig
from pipeline.nets.chain import LocalModule
from pipeline.nets.featuremaps import BlockNet


@METHODS.register
@dataclass(frozen=True, kw_only=True)
class AuglocalSettings(AuxiliaryMethod):
    """AugLocal: every layer a module, but the last ones; its auxiliary net is cut out of the layers behind it."""

    kind: ClassVar[str] = "auglocal"
    aux_depth: int = 2
    """Blocks d of the first layer's auxiliary net. The last d + 1 layers learn together, by the net's classifier."""
    aux_shrink: float = 0.5
    """By what share of d − 1 auxiliary nets get shallower from the first layer to the last one that has one."""

    def check(self) -> None:
        if self.aux_depth < 1:
            raise UserError(f"`aux_depth` {shortened(self.aux_depth)}: must be at least 1.")
        if not 0 <= self.aux_shrink <= 1:
            raise UserError(f"`aux_shrink` {self.aux_shrink}: a share from 0 to 1 (Ma et al. 2024: 0.5).")

    def module_sizes(self, net: NetConfig) -> tuple[int, ...]:
        if not isinstance(net, BlockNet):
            kinds = ", ".join(sorted(kind.kind for kind in NETS if issubclass(kind, BlockNet)))
            raise UserError(
                f"{net.describe()}: auglocal makes auxiliary nets of a net's own blocks, from feature maps to feature "
                f"maps. It trains these nets: {kinds}."
            )
        if 0 < net.num_layers < self.aux_depth + 2:
            raise UserError(
                f"`aux_depth` {shortened(self.aux_depth)}: {net.describe()} has {net.num_layers} layers, and one that "
                f"learns by itself needs {shortened(self.aux_depth + 1)} behind it. "
                f"Give at most `aux_depth` {max(1, net.num_layers - 2)}, or a deeper net."
            )
        return (*[1] * (net.num_layers - self.aux_depth - 1), self.aux_depth + 1)

    def build_rule(self, index: int, module: LocalModule, model_info: ModelInfo) -> AuxiliaryRule:
        depth = auxiliary_depth(index, model_info.num_layers, self.aux_depth, self.aux_shrink)
        numbers = auxiliary_layers(module.numbers[-1], module.net.num_layers, depth)
        return AuxiliaryRule(LaterBlocks(module, numbers, model_info.num_classes))


def auxiliary_depth(index: int, num_modules: int, depth: int, shrink: float) -> int:
    """Blocks of module ``index``'s auxiliary net: d at the first, d − shrink·(d − 1) at the last that has one, rounded.

    Source: Ma et al. 2024, eq. 4, with the program's coefficient.
    """
    share = shrink * index / (num_modules - 2) if num_modules > 2 else 0.0
    return max(1, round(depth * (1 - share) + share))


def auxiliary_layers(layer: int, num_layers: int, depth: int) -> list[int]:
    """The later layers, ``depth`` of them at even distances up to the last one, whose shapes the blocks have."""
    behind = num_layers - layer - 1
    return [round(layer + behind / depth * number) for number in range(1, depth + 1)]
