"""`launch dashboard`: TensorBoard on a free port of this machine, all stages in one chart as the first thing seen."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from launch.output.console import counted, say
from launch.output.run_folder import RUNS, run_name
from launch.output.saved_runs import folders_in
from pipeline.errors import RunError

_FIRST = "#custom_scalars"
"""The tab with a line for every stage in one chart."""
_LOOK = 0.2  # seconds between two looks at whether it is to stop


def dashboard(runs: Sequence[Path], console: Console, *, host: str, port: int, browser: bool) -> None:
    """Serves until it is stopped by Ctrl-C.

    Args:
        runs: run folders, or folders of them. None given: ``runs``.
        port: 0 takes a free one.
        browser: whether to open it in a browser.

    Raises:
        UserError: there is nothing to show.
        RunError: the port is taken.
    """
    shown = [run for place in runs or [RUNS] for run in folders_in(place)]
    with _one_folder(shown) as folder:
        url = _serve(folder, host, port) + _FIRST
        say(console, f"{counted(len(shown), 'run')}: {url}")
        say(console, "Ctrl-C ends it.")
        if browser:
            webbrowser.open(url)
        _until_stopped()


@contextmanager
def _one_folder(runs: Sequence[Path]) -> Iterator[Path]:
    """A folder in which each run has a name of its own. TensorBoard calls a run by its place below its folder."""
    with tempfile.TemporaryDirectory(prefix="localpipe-dashboard-") as made:
        folder = Path(made)
        for run in runs:
            own = run_name(run)
            names = (own, *(f"{own}-{number}" for number in range(2, len(runs) + 2)))
            place = next(folder / name for name in names if not (folder / name).is_symlink())
            place.parent.mkdir(exist_ok=True)
            place.symlink_to(run.resolve())
        yield folder


def _serve(folder: Path, host: str, port: int) -> str:
    """Starts TensorBoard. Returns where it is."""
    from tensorboard import default, program  # noqa: PLC0415 (seconds)
    from tensorboard.program import TensorBoardPortInUseError, TensorBoardServerException  # noqa: PLC0415

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    board = program.TensorBoard(default.get_plugins())
    fast = "true" if importlib.util.find_spec("tensorboard_data_server") else "false"  # "auto" would talk about it
    flags = (f"--logdir={folder}", f"--host={host}", f"--port={port}", f"--load_fast={fast}", "--reload_interval=5")
    board.configure(argv=["launch dashboard", *flags])
    try:
        return str(board.launch())
    except TensorBoardPortInUseError as error:
        raise RunError(f"--port {port} is taken on {host}. Give another one, or none for a free one.") from error
    except TensorBoardServerException as error:
        raise RunError(f"TensorBoard cannot serve on {host}, port {port}: {error.msg}") from error


def _until_stopped() -> None:
    ended = threading.Event()
    try:
        while not ended.wait(_LOOK):  # a signal is heard between two looks
            pass
    except KeyboardInterrupt:
        return
