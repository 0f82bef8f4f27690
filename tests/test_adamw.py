"""The layers' optimizer: torch's AdamW bit for bit, without torch's compiler."""

from __future__ import annotations

import pytest
import torch

from pipeline.methods.adamw import AdamW
from tests.support_cli import in_fresh_python


def test_it_learns_the_bits_of_torch_s() -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2)]
    ours, torchs = (
        kind([weight], lr=1e-2, weight_decay=0.1, fused=True)
        for kind, weight in zip((AdamW, torch.optim.AdamW), weights, strict=True)
    )
    for step in range(5):
        for weight, optimizer in zip(weights, (ours, torchs), strict=True):
            optimizer.zero_grad()
            (weight.cumsum(1) ** 2).sum().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
            optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(*weights)
    assert ours.state_dict()["param_groups"] == torchs.state_dict()["param_groups"]
    for name, value in torchs.state_dict()["state"][0].items():
        assert torch.equal(ours.state_dict()["state"][0][name], value), name
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_a_layer_takes_no_compiler() -> None:
    """Symptom: every process of a run imported torch's compiler, three seconds, for an optimizer that runs without."""
    program = (
        "import sys, torch\n"
        "from pipeline.layers.shared_state import VersionedState\n"
        "from pipeline.layers.layer import LocalLayer\n"
        "from pipeline.methods import DclSettings\n"
        "from pipeline.methods.embeddings import EmbeddingSettings\n"
        "from tests.support import tiny_spec\n"
        "labelled = tiny_spec(method=DclSettings(embedding=EmbeddingSettings(embedding_width=8)))\n"
        "dictionary, layer = VersionedState(labelled), LocalLayer(tiny_spec(), 0, torch.device('cpu'))\n"
        "optimizers = *dictionary._state._optimizers.values(), layer.optimizer, layer.readout_training.optimizer\n"
        "for optimizer in optimizers:\n"
        "    for parameter in optimizer.param_groups[0]['params']:\n"
        "        parameter.grad = torch.ones_like(parameter)\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "assert not {'torch._dynamo', 'sympy'} & sys.modules.keys()\n"
    )
    in_fresh_python(program)
