"""What can be launched: a file per group of methods."""

from __future__ import annotations

from dataclasses import replace

from launch.presets import cff, cfl, dcl
from launch.presets.base import Preset


def _named(name: str, preset: Preset) -> Preset:
    """The preset, its settings knowing its name, its text ending with the paper that it is from."""
    return replace(
        preset,
        paper=f"{preset.paper}\n\n{preset.source.reference}",
        settings=replace(preset.settings, preset=name),
        variants={data: replace(settings, preset=name) for data, settings in preset.variants.items()},
    )


PRESETS: dict[str, Preset] = {
    name: _named(name, preset) for name, preset in {**cff.PRESETS, **cfl.PRESETS, **dcl.PRESETS}.items()
}

__all__ = ["PRESETS", "Preset"]
