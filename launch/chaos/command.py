"""`launch chaos PRESET`: a run undisturbed, the same one disturbed again and again, and whether the bits are equal."""

from __future__ import annotations

import json
import random
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from launch.chaos.faults import FAULTS, STALL, Fault
from launch.chaos.victim import Line, Victim
from launch.command_line.options import take_options
from launch.command_line.parse import parse, unknown
from launch.output.console import counted, make_console, say
from launch.output.run_folder import new_path
from launch.output.tables import print_table
from launch.presets import PRESETS
from pipeline.errors import RunError, UserError

_ABOUT = """Disturbs a run on purpose and shows that it survives: kills, crashes and stops its workers, Ray's processes
and the launching process, damages messages and checkpoints, and cuts connections, at random moments that --seed
decides. What it recovers from by itself it does; after the others `launch resume` goes on, with another number of
stages. At the end weights, optimizers, losses and predictions are compared, byte by byte, with those of a run that
nothing disturbed. Flags of a run follow those of the command, behind --."""

_FILES = ("model.safetensors", "last.safetensors", "steps.safetensors", "predictions.csv")
_START = 300.0  # seconds that a run may take to start on a busy machine, or to recover
_LOOK = 0.05  # seconds between two looks at what it says
_RESUME = "launch resume"
_TRAINS = ("The run goes on, ", "first training step ")
"""Lines by which a run says that it trains again, by itself or after `launch resume`."""


@dataclass(frozen=True, kw_only=True)
class ChaosArguments:
    """Flags of `launch chaos`."""

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")] = "cff-vit"
    """Preset to run."""
    faults: int = 6
    """Disturbances, as far as the run is long enough for them."""
    seed: int = 0
    """Decides which, when, and to whom."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FAULT …")] = ()
    """Kinds of disturbance. Default: all that the run has something for; an unknown name lists them."""
    every: Annotated[str, tyro.conf.arg(metavar="STEPS|TIME")] = "20"
    """How often the run saves checkpoints."""
    pause: float = 4.0
    """Seconds between a recovery and the next disturbance, at most."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """New folder for both runs and chaos.json. Default: runs/chaos-DATE-TIME."""


@dataclass(frozen=True)
class Struck:
    """A disturbance and what became of it.

    Attributes:
        target: what it was done to.
        moment: seconds of training, over all parts of the run, at which it was done.
        noticed: seconds until the run said so, or ended; None where it had nothing to notice.
        recovered: seconds until it trained again; None where it never stopped.
        how: what it did by itself, or `launch resume` with the number of stages.
        repeated: training steps that were done again, where the run said it.
    """

    fault: str
    target: str
    moment: float
    noticed: float | None
    recovered: float | None
    how: str
    repeated: int | None

    @property
    def by_hand(self) -> bool:
        """Whether somebody had to resume it."""
        return self.how.startswith(_RESUME)


def chaos(arguments: list[str], console: Console) -> None:
    """Runs `launch chaos` with these arguments.

    Raises:
        UserError: a mistake in what was asked.
        RunError: the run did not survive, or ended with other bits.
    """
    own, flags = _split(arguments)
    asked = parse(ChaosArguments, own, command="launch chaos", default=ChaosArguments(), about=_ABOUT)
    kinds = _kinds(asked)
    if asked.preset not in PRESETS:
        raise UserError(unknown(asked.preset, PRESETS, "preset"))
    folder = new_path(asked.out, "chaos")
    folder.mkdir(parents=True)
    aside = make_console()
    say(aside, "one run undisturbed …")
    calm = _calm(asked, flags, folder)
    num_layers = len(json.loads((calm / "summary.json").read_text())["layers"])
    say(aside, f"the same one, disturbed {counted(asked.faults, 'time')} (seed {asked.seed}) …")
    struck = Disturbed(asked, flags, folder / "disturbed", kinds, num_layers, aside).run()
    different = [name for name in _FILES if _bytes(folder / "disturbed" / name) != _bytes(calm / name)]
    _report(console, struck, different)
    (folder / "chaos.json").write_text(
        json.dumps({"seed": asked.seed, "equal": not different, "faults": [asdict(one) for one in struck]}, indent=2)
    )
    say(console, f"folder: {folder}")
    if different:
        raise RunError(f"{', '.join(different)} of the disturbed run are other than the undisturbed one's.")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    given = list(arguments)
    place = given.index("--") if "--" in given else len(given)
    own, flags = given[:place], given[place + 1 :]
    for flag in ("--run-dir", "--checkpoint-every", "--max-restarts", "--config"):
        if take_options(flags, flag, "left out")[0]:
            raise UserError(f"{flag}: is `launch chaos`'s own matter. Leave it out.")
    return own, flags


def _kinds(asked: ChaosArguments) -> list[Fault]:
    for name in asked.only:
        if name not in FAULTS:
            raise UserError(f"--only {name}: there are {', '.join(FAULTS)}.")
    if asked.faults < 1:
        raise UserError(f"--faults {asked.faults}: must be at least 1.")
    return [fault for name, fault in FAULTS.items() if not asked.only or name in asked.only]


def _calm(asked: ChaosArguments, flags: Sequence[str], folder: Path) -> Path:
    """The run that nothing disturbs: the plain serial loop."""
    run = folder / "undisturbed"
    ours = ["--run-dir", str(run), "--executor", "serial", "--checkpoint-every", "off", "-q"]
    victim = Victim(run, [asked.preset, *_without_stages(flags), *ours])
    try:
        victim.start()
        if victim.process.wait() != 0:
            raise RunError(f"the undisturbed run failed:\n{victim.tail()}")
    finally:
        victim.end()  # in a session of its own, it does not hear what stops this command
    return run


def _without_stages(flags: Sequence[str]) -> list[str]:
    rest = list(flags)
    for flag in ("--stages", "--partition", "--feeders"):
        _, rest = take_options(rest, flag, "left out")
    return rest


class Disturbed:
    """The run that is disturbed."""

    def __init__(
        self,
        asked: ChaosArguments,
        flags: Sequence[str],
        run: Path,
        kinds: Sequence[Fault],
        num_layers: int,
        aside: Console,
    ) -> None:
        self._asked, self._run, self._kinds, self._aside = asked, run, list(kinds), aside
        self._choose = random.Random(asked.seed)  # noqa: S311 (no secret)
        self._num_layers = num_layers
        self._begun = time.monotonic()
        ours = ["--run-dir", str(run), "--checkpoint-every", asked.every, "--max-restarts", "1000", "-v"]
        self._victim = Victim(run, [asked.preset, *flags, "--stall-timeout", str(STALL), *ours])

    def run(self) -> list[Struck]:
        """Disturbs it until it has had enough or is over."""
        struck: list[Struck] = []
        try:
            self._victim.start()
            if not self._saved_since(0.0, or_end=True):
                raise RunError(f"the run ended before its first checkpoint:\n{self._victim.tail()}")
            due: list[Fault] = []
            in_vain = 0  # kinds in a row that this run has nothing for
            while len(struck) < self._asked.faults and in_vain <= 2 * len(self._kinds):
                time.sleep(self._choose.uniform(0.0, self._asked.pause))
                if self._victim.process.poll() is not None:
                    break
                due = due or self._choose.sample(self._kinds, len(self._kinds))
                one = self._strike(due.pop())
                in_vain = in_vain + 1 if one is None else 0
                if one is not None:
                    struck.append(one)
                    say(self._aside, f"  {len(struck)}. {one.fault}: {one.how}{_seconds(one.recovered, ', {} s')}")
            status = self._victim.process.wait()
        finally:
            self._victim.end()
        if status != 0:
            raise RunError(f"the disturbed run ended with {status}:\n{self._victim.tail()}")
        return struck

    def _strike(self, fault: Fault) -> Struck | None:
        at, victim = time.monotonic(), self._victim
        target = fault.strike(victim, self._choose)
        if target is None:  # this run has no such process, or not now
            return None
        done = Struck(fault.name, target, at - self._begun, None, None, "went on", None)
        struck: Struck | None = done
        match fault.after:
            case "restart":
                struck = self._by_itself(done, at)
            case "either":
                if self._fails_within(2 * STALL, at):
                    struck = self._by_itself(done, at)
            case "resume":
                struck = self._by_hand(done, at)
        if struck is not None:  # the next one strikes a run that has saved something since
            self._saved_since(time.monotonic(), or_end=True)
        return struck

    def _fails_within(self, seconds: float, at: float) -> bool:
        """Whether it says in so many seconds that something happened."""
        while time.monotonic() < at + seconds and self._victim.process.poll() is None:
            if self._victim.first("Going on from", since=at) is not None:
                return True
            time.sleep(_LOOK)
        return False

    def _by_itself(self, struck: Struck, at: float) -> Struck | None:
        """Waits until it has gone on; None where it was over before."""
        victim = self._victim
        if not victim.wait_for("the restart", lambda: victim.first("Going on from", since=at) is not None, _START,
                               or_end=True):  # fmt: skip
            return None
        said = victim.first("Going on from", since=at)
        assert said is not None, "it was waited for"
        trains = self._trains_since(said.at)
        anew = victim.first("Started anew: ", since=said.at)
        ray = victim.first("starting Ray anew", since=said.at)
        how = anew.text.split(". ")[0] if anew is not None else "all anew, with Ray" if ray is not None else "all anew"
        again = re.search(r"([0-9,]+) steps? again", said.text)
        return replace(
            struck,
            noticed=said.at - at,
            recovered=trains - at,
            how=how.removeprefix("Started ").replace("anew: ", ""),
            repeated=int(again[1].replace(",", "")) if again else None,
        )

    def _by_hand(self, struck: Struck, at: float) -> Struck | None:
        """Waits for its end, and resumes it; None where it was over before."""
        victim = self._victim
        victim.wait_for("its end", lambda: victim.process.poll() is not None, _START, or_end=True)
        ended = time.monotonic()
        if victim.process.returncode == 0:
            return None
        victim.end()
        stages = self._choose.randint(1, self._num_layers)
        self._victim = victim = Victim(self._run, ["resume", str(self._run), "--stages", str(stages), "-v"])
        victim.start()
        trains = self._trains_since(ended)
        how = f"{_RESUME}, {counted(stages, 'stage')}"
        return replace(struck, noticed=ended - at, recovered=trains - at, how=how)

    def _trains_since(self, moment: float) -> float:
        """When it has trained again."""
        victim = self._victim

        def trains() -> Line | None:
            return next((line for text in _TRAINS if (line := victim.first(text, since=moment)) is not None), None)

        victim.wait_for("training", lambda: trains() is not None, _START)
        line = trains()
        assert line is not None, "it was waited for"
        return line.at

    def _saved_since(self, moment: float, *, or_end: bool) -> bool:
        """Waits until the run has saved a checkpoint after that moment. Returns False where it ended before."""
        victim = self._victim
        return victim.wait_for(
            "a checkpoint", lambda: victim.first("checkpoint: ", since=moment) is not None, _START, or_end=or_end
        )


def _report(console: Console, struck: Sequence[Struck], different: Sequence[str]) -> None:
    headings = ("fault", "to", "at s", "noticed after s", "training after s", "how", "steps again")
    rows = [
        (
            one.fault,
            one.target,
            f"{one.moment:.0f}",
            _seconds(one.noticed, "{}", "–"),
            _seconds(one.recovered, "{}", "–"),
            one.how,
            "–" if one.repeated is None else f"{one.repeated:,}",
        )
        for one in struck
    ]
    print_table(console, headings, rows, left=("fault", "to", "how"))
    if struck:
        medians = []
        for who, by_hand in (("by itself", False), ("by launch resume", True)):
            took = [one.recovered for one in struck if one.recovered is not None and one.by_hand == by_hand]
            medians += [f"{statistics.median(took):.1f} s {who} ({len(took)})"] if took else []
        said = f"; in the median it trained again after {', '.join(medians)}" if medians else ""
        say(console, f"survived {counted(len(struck), 'fault')}{said}")
    bits = "other bits than the undisturbed run's" if different else "the bits of the undisturbed run"
    say(console, f"weights, optimizers, losses and predictions: {bits}", style="bold")


def _seconds(value: float | None, text: str, none: str = "") -> str:
    return none if value is None else text.format(f"{value:.1f}")


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None
