"""`launch bench transport`: what a message between two stages costs, by channel, against a plain copy and a socket.

Messages stream as fast as they can, as between two stages of which neither computes. Every receiver reads what it got
once, as a stage would: bytes that came without a copy have still to come through its caches.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace

from rich.console import Console

from launch.bench.arguments import output_folder
from launch.bench.protocol import CannotRunError
from launch.bench.transport_ways import Processes, Turn, alone, channel, raw_socket
from launch.command_line.parse import most_steps, parse
from launch.command_line.setting_names import as_flags
from launch.output.console import say
from launch.output.run_folder import command_line
from launch.output.summary import machine
from launch.output.tables import print_table
from pipeline.config.settings import PipelineSettings
from pipeline.errors import UserError
from pipeline.transport import CARRIERS
from pipeline.transport.base import kinds

_GLANCE = 0.05  # seconds of a measurement that only shows that it works
_MB, _GB = 1e6, 1e9  # bytes
_LARGEST = 1024.0  # MB
_TITLES = {
    "read": "the receiver's read alone",
    "copy": "a copy in memory",
    "local": "LocalChannel, two threads",
    "socket": "a plain TCP socket",
    **{kind: f"--transport {kind}" for kind in kinds()},
}


@dataclass(frozen=True, kw_only=True)
class TransportArguments:
    """What a message between two stages costs: MB/s, µs and CPU seconds per GB of every channel, against a copy in
    memory and a plain TCP socket through the loopback. Two processes, one thread each; ways take turns."""

    sizes: tuple[float, ...] = (0.0, 0.064, 2.0, 16.8, 64.0)
    """Sizes of messages in MB (10⁶ bytes). 0: a control token. 16.8: ViT[128 4 4], batch 512, one view."""
    seconds: float = 0.5
    """Seconds of each measurement."""
    rounds: int = 5
    """Measurements of each size and way; their medians count."""
    out: str | None = None
    """New folder for transport.json. Default: runs/bench-transport-DATE-TIME."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a way costs at one size: medians over rounds.

    Attributes:
        us: microseconds per message.
        cpu_us: CPU microseconds per message, both ends together.
        mb_per_second, slowest, fastest: None for a control token, which has no payload. Slowest and fastest round.
        cpu_per_gb: CPU seconds per 10⁹ bytes of each process, the sender's first; likewise None.
    """

    way: str
    bytes: int
    us: float
    cpu_us: float
    mb_per_second: float | None = None
    slowest: float | None = None
    fastest: float | None = None
    cpu_per_gb: tuple[float, ...] | None = None


def transport(arguments: list[str], console: Console) -> None:
    """Runs `launch bench transport` with these arguments.

    Raises:
        UserError: a flag is wrong.
    """
    asked = parse(TransportArguments, arguments, command="launch bench transport")
    if most_steps() is not None:  # a quick look
        asked = replace(asked, rounds=1, seconds=min(asked.seconds, _GLANCE))
    sizes = _checked(asked)
    folder = output_folder(asked.out, "bench-transport")
    turns: dict[tuple[str, int], list[Turn]] = {}
    with ExitStack() as stack:
        ways, absent = _open(stack, sizes)
        for number in range(asked.rounds):
            say(console, f"round {number + 1} of {asked.rounds}")
            for index, size in enumerate(sizes):
                for name in rotated(list(ways), number):
                    turn = ways[name].turn(name, index, asked.seconds)
                    turns.setdefault((name, size), []).append(turn)
    costs = [cost_of(name, size, measured) for (name, size), measured in turns.items()]
    said = conclude(costs)
    _print(costs, absent, said, console)
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "command": command_line(),
        "machine": machine(),
        "settings": asdict(asked),
        "costs": [asdict(cost) for cost in costs],
        "rounds": [
            {"way": name, "bytes": size, "turns": [asdict(turn) for turn in measured]}
            for (name, size), measured in turns.items()
        ],
        "absent": absent,
        "conclusion": said,
    }
    (folder / "transport.json").write_text(json.dumps(report, indent=2) + "\n")
    say(console, f"report: {folder}")


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each begins with another way, so that none is always behind the same one."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def cost_of(way: str, size: int, turns: Sequence[Turn]) -> Cost:
    """The medians of a way's turns at one size in bytes."""
    counted = [turn for turn in turns if turn.messages]
    if not counted:
        raise UserError(f"{way}: no message of {size / _MB:g} MB arrived in a round. Give more --seconds.")
    us = statistics.median(turn.seconds / turn.messages * 1e6 for turn in counted)
    cpu_us = statistics.median(sum(turn.cpu) / turn.messages * 1e6 for turn in counted)
    if not size:
        return Cost(way=way, bytes=0, us=us, cpu_us=cpu_us)
    speeds = [turn.messages * size / turn.seconds / _MB for turn in counted]
    per_gb = [[cpu / (turn.messages * size / _GB) for cpu in turn.cpu] for turn in counted]
    return Cost(
        way=way,
        bytes=size,
        us=us,
        cpu_us=cpu_us,
        mb_per_second=statistics.median(speeds),
        slowest=min(speeds),
        fastest=max(speeds),
        cpu_per_gb=tuple(statistics.median(end) for end in zip(*per_gb, strict=True)),
    )


def conclude(costs: Sequence[Cost]) -> str:
    """Which channel to use here, from the largest messages: the one that takes the least CPU time from the stages."""
    largest = max(cost.bytes for cost in costs)
    there = {cost.way: cost for cost in costs if cost.bytes == largest}
    ours = {name: there[name] for name in kinds() if name in there and "cpu" in CARRIERS[name].devices}
    best = min(ours.values(), key=lambda cost: cost.cpu_us)
    sentence = f"Between CPU stages of this machine use --transport {best.way}"
    if best.way == "shm":
        sentence += ", which auto takes"
    size = f"{largest / _MB:g} MB" if largest else "no payload"
    sentence += f": a message of {size} takes {best.us / 1e3:.3g} ms and {best.cpu_us / 1e3:.3g} ms of CPU time"
    for other in ours.values():
        if other is not best:
            sentence += f", {other.way} {other.us / 1e3:.3g} and {other.cpu_us / 1e3:.3g} ms"
    for name, title in (("copy", "a copy in memory"), ("socket", "a plain socket")):
        sentence += f", {title} {there[name].us / 1e3:.3g} and {there[name].cpu_us / 1e3:.3g} ms"
    if "nccl" in there:
        sentence += f". Between GPUs use nccl: {there['nccl'].us / 1e3:.3g} ms"
    return sentence + ". The receiver's read is in all of them."


def _checked(asked: TransportArguments) -> list[int]:
    """Sizes in bytes, in order. Raises UserError for what cannot be measured."""
    if not asked.sizes or not all(0 <= size <= _LARGEST for size in asked.sizes):
        given = " ".join(f"{size:g}" for size in asked.sizes) or "nothing"
        raise UserError(f"--sizes {given}: give MB, from 0 to {_LARGEST:g} each.")
    if not asked.seconds > 0:
        raise UserError(f"--seconds {asked.seconds:g}: must be above 0.")
    if asked.rounds < 1:
        raise UserError(f"--rounds {asked.rounds}: give at least 1.")
    return sorted({round(size * _MB / 4) * 4 for size in asked.sizes})


def _open(stack: ExitStack, sizes: Sequence[int]) -> tuple[dict[str, Processes], dict[str, str]]:
    """The ways by name, and why those that are missing are."""
    depth = PipelineSettings().depth
    one = stack.enter_context(alone(sizes, depth=depth))
    ways = {"read": one, "copy": one, "local": one, "socket": stack.enter_context(raw_socket(sizes))}
    absent: dict[str, str] = {}
    for name in kinds():
        try:
            ways[name] = stack.enter_context(channel(name, sizes, depth=depth))
        except CannotRunError as error:
            absent[name] = as_flags(str(error))
    return ways, absent


_HEADINGS = ("way", "MB/s", "slowest to fastest", "µs a message", "CPU µs a message", "CPU s per GB")


def _print(costs: Sequence[Cost], absent: dict[str, str], said: str, console: Console) -> None:
    for size in sorted({cost.bytes for cost in costs}):
        title = f"messages of {size / _MB:g} MB" if size else "control tokens"
        rows = [_row(cost) for cost in costs if cost.bytes == size]
        print_table(console, _HEADINGS, rows, title=title, left=_HEADINGS[:1])
    for reason in absent.values():
        say(console, f"left out: {reason}")
    say(console, said)


def _row(cost: Cost) -> list[str]:
    def figure(value: float | None) -> str:
        return "–" if value is None else f"{value:,.0f}"

    spread = f"{figure(cost.slowest)} to {figure(cost.fastest)}" if cost.slowest is not None else "–"
    cpu = " + ".join(f"{end:.3f}" for end in cost.cpu_per_gb) if cost.cpu_per_gb is not None else "–"
    return [_TITLES[cost.way], figure(cost.mb_per_second), spread, f"{cost.us:,.1f}", f"{cost.cpu_us:,.1f}", cpu]
