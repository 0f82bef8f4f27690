"""A layer's net, rule and readout as they begin: with the same weights wherever the layer is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline import rng
from pipeline.config.run_spec import RunSpec
from pipeline.layers.joined import JoinedFeatures
from pipeline.layers.readout import Readout
from pipeline.layers.state import below
from pipeline.methods import Rule
from pipeline.nets import Dropout, Layer


@dataclass(frozen=True)
class Beginning:
    """A layer's parts before it has learned.

    Attributes:
        joined: what the readout sees of earlier layers, and what travels on.
    """

    net: Layer
    rule: Rule
    readout: Readout
    joined: JoinedFeatures

    @classmethod
    def of(cls, spec: RunSpec, index: int, device: torch.device) -> Beginning:
        """Those of layer ``index`` of a run: with random weights, which are drawn on the CPU, so that a GPU starts from
        the same ones, or with weights of the run that this one begins with."""
        settings, seed = spec.settings, spec.settings.train.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.torch_seed(seed, "init", index))
            net = spec.net.build(index, spec.shape)
            torch.manual_seed(rng.torch_seed(seed, "init-rule", index))
            rule = settings.method.build(index, net, spec.model_info)
            torch.manual_seed(rng.torch_seed(seed, "init-readout", index))
            joined = JoinedFeatures(settings.method, spec.net, spec.shape, index, net, spec.readouts)
            readout = Readout(joined.width, len(spec.classes), norm=settings.readout.readout_norm)
        if spec.initial is not None:
            net.load_state_dict(below(spec.initial[index], "net."), strict=False)
            rule.load_state_dict(below(spec.initial[index], "rule."), strict=False)
        return cls(net.to(device), rule.to(device), readout.to(device), joined)

    def draw_from(self, generator: torch.Generator) -> None:
        """Has net and rule draw what they drop from this generator."""
        for module in (*self.net.modules(), *self.rule.modules()):
            if isinstance(module, Dropout):
                module.generator = generator
