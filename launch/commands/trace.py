"""`launch trace RUN`: has a run that goes on trace its next training steps, and draws the trace."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from launch.command_line.arguments import TraceArguments
from launch.output import live
from launch.output.console import say, warn
from launch.output.going_on import is_locked
from launch.output.run_folder import load_config
from launch.output.trace import FLAME, TRACE, TRAINING_STEPS
from launch.output.trace_picture import trace_figure
from launch.output.wishes import TRACE_WISH, ask, trace_wish
from pipeline.config import settings as settings_module
from pipeline.config.checks import MOST_PROFILED, MOST_TRACED, check_trace
from pipeline.errors import UserError
from pipeline.telemetry.trace import TraceWish


def trace(arguments: TraceArguments, console: Console) -> None:
    """Asks for a trace, waits for it, draws it. Raises UserError where there is nothing to trace."""
    run = arguments.run
    for flag, value, least, most in (
        ("--steps", arguments.steps, 1, MOST_TRACED),
        ("--profile", arguments.profile, 0, MOST_PROFILED),
    ):
        if not least <= value <= most:
            raise UserError(f"{flag} {value}: must be a number of at least {least} and at most {most:,}.")
    settings = settings_module.from_dict(load_config(run)["settings"], source=str(run / "config.json"))
    check_trace(arguments.steps, arguments.profile, settings.pipeline.executor)
    if not is_locked(run):
        raise UserError(f"{run}: no run goes on there. `launch PRESET --trace 20` traces one from its second epoch on.")
    now = live.read(run)
    if now is not None and now.step >= now.steps:
        raise UserError(f"{run}: its layers have learned to the end, and only that is traced.")
    ask(
        run / TRACE_WISH,
        trace_wish(TraceWish(arguments.steps, arguments.profile)),
        arguments.wait,
        goes_on=lambda: is_locked(run),
        missing=f"{run}: no trace",
        hint="A run is traced while its layers learn; ask again once it trains, or give it more time with --wait.",
    )
    try:
        steps = json.loads((run / TRACE).read_text())["otherData"][TRAINING_STEPS]
        picture = _draw(run)
    except OSError as error:
        raise UserError(f"{run}: the trace is not there ({error.strerror}). Is the disk full?") from error
    say(console, f"training steps {steps}, every stage: {run / TRACE}, for ui.perfetto.dev")
    if arguments.profile:
        say(console, f"flame graphs: {run / FLAME}, for speedscope.app")
    if picture is not None:
        say(console, f"as a picture: {picture}")


def _draw(run: Path) -> Path | None:
    """Draws the trace beside it. None where that cannot be, which is said."""
    try:
        from launch.output import pictures  # noqa: PLC0415 (matplotlib takes a second to import)
    except ImportError as error:
        warn(f"the trace could not be drawn ({error}).")
        return None
    pictures.write(trace_figure(run), run / "trace.png", "svg")
    return run / "trace.png"
