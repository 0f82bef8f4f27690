"""Runs the steps of `launch doctor --gpu`, each in a process of its own and within its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from launch.doctor.figures import Figures, read
from launch.doctor.report import Report, Status, StepResult
from launch.doctor.steps import Step, allowance, why_not
from pipeline.data.prepare import DATA_DIR_VARIABLE

ROOT = Path(__file__).parents[2]
"""Where ``launch`` is; in a clone with its tests."""

_GRACE = 25.0  # seconds that a step has to report what it has found so far, once it is asked to stop
_REASON = 300  # characters of a step's last words that the report repeats


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a step's process ended, in how many seconds, and what it printed."""

    status: Status
    seconds: float
    reason: str
    log: str


Run = Callable[[Step, float, Path], Ended]
"""Runs a step for so many seconds at most, its files going to a folder."""


def run_all(
    steps: Sequence[Step],
    report: Report,
    work: Path,
    *,
    minutes: float,
    say: Callable[[str], None],
    run: Run,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Runs the steps in turn and reports each as soon as it has ended. None stops the others.

    Args:
        work: folder for the steps' own files.
        minutes: for all of them together: what is left after that is skipped.
        run: ``run_step``; tests give another.
        now: seconds on any clock.

    Raises:
        KeyboardInterrupt: stopped by hand; the step that ran is reported with what it has found, the others as skipped.
    """
    end = now() + 60 * minutes
    num_gpus, prepared = len(report.machine.torch_gpus), report.machine.prepared
    for number, step in enumerate(steps, start=1):
        missing = why_not(step, num_gpus=num_gpus, prepared=prepared, has_tests=has_tests())
        limit = allowance(step, end - now())
        if missing is None and limit is None:
            missing = f"the {minutes:g} minutes were over: --minutes gives more, --only names single steps"
        if missing is not None or limit is None:
            report.add(StepResult(step=step, status="skipped", reason=missing or ""))
            say(f"{number}/{len(steps)} {step.name}: skipped, {missing}")
            continue
        say(f"{number}/{len(steps)} {step.name}: {step.title}, at most {limit:.0f} s …")
        ended = run(step, limit, work)
        report.add(_result(step, ended, work), ended.log)
        said = f": {ended.reason}" if ended.reason else ""
        say(f"{number}/{len(steps)} {step.name}: {ended.status} in {ended.seconds:.0f} s{said}")
        if ended.reason == BY_HAND:
            for left in steps[number:]:
                report.add(StepResult(step=left, status="skipped", reason=BY_HAND))
            raise KeyboardInterrupt


BY_HAND = "stopped by hand"
"""Reason of steps that Ctrl-C or a scheduler ended."""


def has_tests() -> bool:
    """Whether the GPU tests, and what runs them, are there."""
    return (ROOT / "tests" / "test_gpu.py").is_file() and find_spec("pytest") is not None


def _result(step: Step, ended: Ended, work: Path) -> StepResult:
    """With the figures that the step left; a file that cannot be read is a failure of the step."""
    figures: Figures | None = None
    status, reason = ended.status, ended.reason
    try:
        figures = read(step.reader, work / step.name, ended.log)
    except (ValueError, KeyError, TypeError, OSError) as error:
        status, reason = "failed", f"what it left cannot be read: {type(error).__name__}: {error}"
    if figures is None and status == "done":
        status, reason = "failed", "it left no figures"
    return StepResult(step=step, status=status, seconds=ended.seconds, reason=reason, figures=figures)


def run_step(step: Step, limit: float, work: Path) -> Ended:
    """Runs a step's command in a process and session of its own, and asks it to stop when its time is over."""
    tests = step.reader == "tests"
    module, folder = ("pytest", ROOT) if tests else ("launch", work)
    file = work / f"{step.name}.txt"
    begun = time.monotonic()
    with file.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 (our own command)
            [sys.executable, "-m", module, *step.command],
            cwd=folder,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        reason = ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            reason = f"its {limit:.0f} s were over"
        except KeyboardInterrupt:
            reason = BY_HAND
        finally:
            if process.poll() is None:
                _stop(process)
    seconds, log = time.monotonic() - begun, file.read_text(errors="replace")
    if reason:
        return Ended(status="stopped", seconds=seconds, reason=reason, log=log)
    if process.returncode != 0:
        _end_group(process)
        return Ended(status="failed", seconds=seconds, reason=last_words(log, process.returncode), log=log)
    return Ended(status="done", seconds=seconds, reason="", log=log)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """That of a step's process: it finds ``launch`` and the data from any folder, and prints wide plain tables."""
    found = {**given, "COLUMNS": "160", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    found["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [given.get("PYTHONPATH")])])
    if given.get(DATA_DIR_VARIABLE):
        found[DATA_DIR_VARIABLE] = str(Path(given[DATA_DIR_VARIABLE]).expanduser().resolve())
    return found


def last_words(log: str, status: int) -> str:
    """Why a command failed, from what it printed: its error, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    said = (errors or lines or ["it printed nothing"])[-1]
    said = said if len(said) <= _REASON else said[: _REASON - 1] + "…"
    how = f"by signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {said}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks it to stop, as a scheduler does, so that it reports what it has. Then kills it, and all that it started."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:
        _end_group(process)
        process.wait()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # they have all ended
        os.killpg(process.pid, signal.SIGKILL)
