"""`launch analyse`: pictures and figures of what every layer has learned."""

from __future__ import annotations

from rich.console import Console

from launch.analyse.figures import Wishes, analyse
from launch.analyse.superclasses import read_superclasses
from launch.output.going_on import is_locked
from launch.output.open_run import open_run
from launch.output.progress import ProgressLine
from pipeline.errors import UserError


def analyse_run(wishes: Wishes, console: Console) -> None:
    """Analyses a run from its saved weights; writes RUN/analysis/ and prints the main figures.

    Raises:
        UserError: matplotlib is missing, a wish out of range, no run folder, or its data are gone.
    """
    _require_matplotlib()
    from launch.analyse import report  # noqa: PLC0415 (matplotlib takes a second to import)

    wishes.check()
    opened = open_run(wishes.run)
    groups = None
    if wishes.superclasses is not None:
        groups = read_superclasses(wishes.superclasses, opened.spec.classes)
    with ProgressLine(console) as line:
        analysis = analyse(opened, wishes, groups, progress=line.report)
        pictures = report.pictures(analysis)
        folder = wishes.run / "analysis"
        try:
            report.write(folder, analysis, pictures, run_goes_on=is_locked(wishes.run), progress=line.report)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}).") from error
    report.show(console, folder, analysis, pictures)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401, PLC0415 (as above)
    except ImportError as error:
        raise UserError(
            f"launch analyse draws with matplotlib, which cannot be imported ({error}). "
            "Install it with: pip install matplotlib"
        ) from error
