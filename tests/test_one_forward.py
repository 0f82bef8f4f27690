"""A trained network computes what its run computed, whoever asks: bit for bit where it is the same device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import load
from pipeline.config.settings import PipelineSettings, Precision, ReadoutSettings, Settings, TransferDtype
from pipeline.export import card_of, save
from pipeline.layers.state import is_finite
from pipeline.layers.tallies import EvaluationTally
from pipeline.methods import BaselineSettings, CflSettings, DclSettings
from pipeline.nets import ConvSettings, MixerSettings, MlpSettings
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run

_BATCH = 64
_ONLINE = ReadoutSettings(mode="online", readout_lr="lr")
RUNS: dict[str, dict[str, Any]] = {
    "CFF on a ViT": {},
    "CFL on convolutions": {"method": CflSettings(), "net": ConvSettings(channels=(16, 24)), "readout": _ONLINE},
    "DCL on fully connected layers": {
        "method": DclSettings(),
        "net": MlpSettings(width=32, depth=2),
        "readout": _ONLINE,
    },
    "CFF on a Mixer": {"net": MixerSettings(dim=16, depth=2)},
    "backprop": {"method": BaselineSettings(feedback="bp"), "readout": ReadoutSettings(mode="none")},
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("transfer_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RUNS)
def test_a_loaded_network_gives_the_runs_features_and_predictions(
    small_settings: Settings,
    name: str,
    transfer_dtype: TransferDtype,
    precision: Precision,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Symptom: with bf16 transfers the features of a loaded network were off by 1e-3."""
    seen: dict[int, list[dict[str, Tensor | None]]] = {}

    def add(tally: EvaluationTally, **figures: Any) -> None:
        seen.setdefault(tally.layer, []).append(figures)
        plain(tally, **figures)

    plain = EvaluationTally.add
    monkeypatch.setattr(EvaluationTally, "add", add)
    pipe: PipelineSettings = replace(small_settings.pipeline, transfer_dtype=transfer_dtype, precision=precision)
    train = replace(small_settings.train, epochs=1, batch_size=_BATCH, max_steps=6)
    spec, dataset = make_run(replace(small_settings, pipeline=pipe, train=train, **RUNS[name]))
    result = train_serial(spec, dataset)
    assert is_finite(result.weights)
    save(tmp_path / "net.safetensors", result.weights, card_of(spec))
    network = load(tmp_path / "net.safetensors")
    tested = list(dataset.batches("test", epoch=0, batch_size=_BATCH))
    predictions = result.history.predictions()
    assert predictions is not None
    with torch.no_grad():
        guesses = torch.cat([network(batch.images).argmax(dim=1) for batch in tested])
        assert (guesses.numpy() == predictions[:, 2]).all()
        for number, batch in enumerate(tested):
            for layer in network.outputs(batch.images):
                of_run = seen[layer.index][number - len(tested)]  # the test is a run's last pass
                for figure, expected in (
                    (layer.features, of_run["features"]),
                    (layer.readout, of_run["scores"]),
                    (layer.direct, of_run["direct_scores"]),
                ):
                    assert (figure is None) == (expected is None)
                    assert figure is None or expected is None or torch.equal(figure, expected)
