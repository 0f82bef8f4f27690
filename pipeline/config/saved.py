"""What is saved of a run beside what it learned: its settings, its data, where it ran."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config import settings as settings_module
from pipeline.config.run_spec import RunSpec


def config_of(spec: RunSpec) -> dict[str, Any]:
    """The content of a run's ``config.json``, and of its checkpoints' manifests."""
    return {
        "format": 1,
        "settings": settings_module.to_dict(spec.settings),
        "data": {
            "name": spec.data_name,
            "folder": spec.data_folder,
            "content_hash": spec.content_hash,
            "shape": spec.shape,
            "classes": spec.classes,
            "mean": spec.augment.mean,
            "std": spec.augment.std,
        },
        "stages": [[layer + 1 for layer in layers] for layers in spec.stages],
        "device": spec.device,
    }


def flattened(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Values in groups within groups, each by its name with its groups' before it: "train.lr"."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
