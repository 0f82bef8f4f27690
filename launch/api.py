"""Runs from Python and notebooks: what `launch PRESET` does, without a command line."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from launch.command_line.arguments import ResumeArguments
from launch.command_line.flags import setting_paths
from launch.command_line.parse import RunArguments, shortened, unknown, with_plugins
from launch.commands.resume import resume_run
from launch.commands.train import Interrupts, run
from launch.output.console import make_console
from launch.output.run import Run
from launch.presets import PRESETS, load_plugins
from pipeline.config import settings as settings_module
from pipeline.config.settings import Settings
from pipeline.errors import UserError


def train(
    preset: str = "cff-vit",
    *,
    quiet: bool = False,
    stop: threading.Event | None = None,
    plugins: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Trains by a preset; shows progress and result as `launch PRESET` does.

    >>> run = train("cff-vit", data="digits", stages=2)      # doctest: +SKIP
    >>> run.network(images).argmax(dim=1)                    # doctest: +SKIP

    It may be called from any thread. In the main thread Ctrl-C stops it and keeps what was learned.

    Args:
        preset: as `launch list` shows them.
        quiet: print the result and warnings alone.
        stop: set from another thread, it stops the run, which keeps what it learned.
        plugins: Python files, or modules, that register methods, nets and presets (docs/extending.md).
        settings: the flags that `launch PRESET --help-all` lists, with underscores: ``batch_size=64``.

    Raises:
        UserError: a preset, setting or value that does not exist; nothing was started. It names settings as the run's
            config.json has them, where the argument ``readout`` is `readout.mode`.
        RunError: the run failed; what was learned is in its folder.
    """
    load_plugins(plugins)
    if preset not in PRESETS:
        raise UserError(unknown(preset, PRESETS, "preset"))
    data = settings.get("data")
    asked = with_settings(PRESETS[preset].settings_for(data), settings)
    finished = run(
        with_plugins(RunArguments(run=shortened(asked), quiet=quiet), plugins),
        make_console(),
        began=time.time(),
        interrupts=Interrupts(stop),
        command=f"train({', '.join([repr(preset), *(f'{name}={value!r}' for name, value in settings.items())])})",
    )
    assert finished is not None, "no dry run"
    return finished


def resume(run: str | Path, *, quiet: bool = False, stop: threading.Event | None = None, **changes: Any) -> Run:
    """Goes on with a run from its last checkpoint, as `launch resume RUN` does.

    >>> run = resume("runs/cff-vit-20261125-124834", stages=3)      # doctest: +SKIP

    Args:
        run: its folder, or the URL of its copy.
        quiet, stop: as of ``train``.
        changes: the flags that `launch resume --help` lists, with underscores: ``epochs=100``.

    Raises:
        UserError: nothing to go on from, or a change that cannot be.
        RunError: the run failed.
    """
    known = {field.name for field in fields(ResumeArguments)} - {"run", "quiet"}
    for name in changes:
        if name not in known:
            raise UserError(unknown(name, known, "change of a run that goes on"))
    asked = ResumeArguments(run=str(run), quiet=quiet, **changes)
    return resume_run(asked, make_console(), began=time.time(), interrupts=Interrupts(stop))


def with_settings(settings: Settings, values: dict[str, Any]) -> Settings:
    """Settings with some of them changed, each by the name of its flag, with underscores in place of dashes.

    Raises:
        UserError: a name that is no setting of this net and method, or a value that does not fit it.
    """
    saved = settings_module.to_dict(settings)
    paths = {flag.replace("-", "_"): path for flag, path in setting_paths(settings)}
    for name, value in values.items():
        if name not in paths:
            raise UserError(unknown(name, paths, f"setting of {settings.preset}"))
        *groups, field = paths[name]
        group = saved
        for one in groups:
            group = group[one]
        group[field] = str(value) if isinstance(value, Path) else value
    return settings_module.from_dict(saved, source=f"train({settings.preset!r})")
