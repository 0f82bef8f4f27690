"""What can be launched: a file per group of methods, and the presets of plug-ins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launch.presets import auxiliary, cafo, cff, cfl, dcl, ff, ffcl, scff
from launch.presets.base import Preset
from pipeline import plugins
from pipeline.config.settings import Settings
from pipeline.errors import UserError


def _named(name: str, preset: Preset, plugin: tuple[str, ...] = ()) -> Preset:
    """The preset, its settings knowing its name and plug-in, its text ending with the paper that it is from."""

    def known(settings: Settings) -> Settings:
        return replace(settings, preset=name, plugins=plugin)

    return replace(
        preset,
        paper="\n\n".join(text for text in (preset.paper, preset.source and preset.source.reference) if text),
        settings=known(preset.settings),
        variants={data: known(settings) for data, settings in preset.variants.items()},
    )


_FAMILIES = (cff, cfl, dcl, ff, ffcl, cafo, scff, auxiliary)

PRESETS: dict[str, Preset] = {
    name: _named(name, preset) for family in _FAMILIES for name, preset in family.PRESETS.items()
}
"""Every preset by its name."""


def load_plugins(named: Sequence[str] = ()) -> None:
    """Loads plug-ins, those of installed packages as well, and adds the presets that they have in ``PRESETS``.

    Raises:
        UserError: a plug-in cannot be loaded, or has a preset of a name that is taken.
    """
    plugins.load_installed()
    for name in named:
        plugins.load_plugin(name)
    for where, module in plugins.loaded().items():
        for name, preset in getattr(module, "PRESETS", {}).items():
            known = PRESETS.get(name)
            if known is not None and known.settings.plugins != (where,):
                raise UserError(f"plug-in {where}: there is a preset {name!r} already. Give its own another name.")
            PRESETS[name] = _named(name, preset, (where,))


__all__ = ["PRESETS", "Preset", "load_plugins"]
