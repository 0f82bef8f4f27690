"""What the figures mean, in sentences: who wins by how much, what the pipeline loses to what, what not to conclude."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.bench.feeding import FeederSpeed
from launch.bench.figures import BACKPROP, Figures, Ratio
from pipeline.planning.ideal import fill

PAPER_CLAIM = 1.8
"""Per epoch over DataParallel on two T4: ViT[128 4 2], one-forward, two stages (Aghagolzadeh & Ezoji 2025)."""

_WAYS = {
    "wait_in": "waiting for input",
    "wait_out": "waiting for the next stage to take a batch",
    "copy": "copying batches",
    "sync": "waiting for label embeddings",
    "other": "the rest (Ray, metrics, Python between steps)",
}
_LEAST = 0.001  # share of time that is worth a word
_EVEN = 0.95  # of the devices: what an ideal has from where on stages count as equal


@dataclass(frozen=True, kw_only=True)
class FeederRate:
    """How fast a feeder is when nobody holds it back, and the images per second that the fastest pipeline takes."""

    speed: FeederSpeed
    needed: float

    @property
    def factor(self) -> float:
        return self.speed.later / self.needed


def conclude(
    rows: Sequence[Figures],
    *,
    feeder: FeederRate | None = None,
    paper: bool = False,
    num_rounds: int = 0,
    steps_per_epoch: int = 0,
) -> list[str]:
    """The report's sentences.

    Args:
        paper: the rows are those of Aghagolzadeh & Ezoji 2025's experiment.
        num_rounds: as asked for; fewer were measured where it was stopped by hand.
        steps_per_epoch: of the whole data set; 0 leaves the fill out.
    """
    measured = [row for row in rows if row.images_per_second is not None]
    said = _winner([row for row in measured if row.source == "memory"] or measured)
    pipelined = [row for row in measured if row.ideal is not None and len(row.devices) > 1]
    said += [
        f"{row.label} is {_times(row.rival.ratio, f' as {row.rival.name}')}, the fastest pipeline of backpropagation."
        for row in pipelined
        if row.rival is not None
    ]
    said += _cuts(measured)
    said += [_against_ideal(row) for row in pipelined]
    most = max((len(row.devices) for row in measured if row.ideal is not None), default=1)
    if most > 1 and steps_per_epoch:
        said.append(
            f"Ideal and speed-up are those of a full pipeline. Filling it costs once: a run of a single epoch, "
            f"{steps_per_epoch} steps, keeps {most} stages {100 * fill(steps_per_epoch, most):.1f} % full, and later "
            "epochs follow without a gap."
        )
    said += _with_feeder(measured)
    if feeder is not None:
        enough = "" if feeder.factor >= 1.5 else " That is little room: give more --feeders."
        said.append(
            f"One feeder that nobody holds back gives {feeder.speed.later:,.0f} images/s, {feeder.factor:.1f} times "
            f"what the fastest pipeline takes, and {feeder.speed.first:,.0f} in its first epoch, in which it decodes "
            f"them.{enough}"
        )
    if paper:
        said.append(_claim(measured))
    missing = [row.label for row in rows if row.trouble is not None]
    if missing:
        said.append(f"Without figures or with fewer: {', '.join(missing)}; the table says why.")
    if {row.family for row in measured} == {"local", "backprop"}:
        said.append(
            "The same number of steps does not mean the same accuracy: the methods learn other things at another pace. "
            "--to-accuracy X measures the time to an accuracy."
        )
    if num_rounds == 1 and measured:
        said.append("One round has no spread: differences of a few per cent mean nothing.")
    return said


def _winner(rows: Sequence[Figures]) -> list[str]:
    if not rows:
        return ["Nothing was measured."]
    ranked = sorted(rows, key=lambda row: row.images_per_second or 0.0, reverse=True)
    best = ranked[0]
    others = [row for row in ranked if row.family != best.family]
    if not others:
        return [f"{best.title} is fastest of what ran: {_speed(best)}."]
    second = others[0]
    whose = "backprop row" if second.family == "backprop" else "row of local learning"
    factor = (best.images_per_second or 0.0) / (second.images_per_second or 1.0)
    if (best.low or 0.0) <= (second.high or 0.0):
        sentence = (
            f"Nobody wins clearly: {best.title} has {_speed(best)} and the fastest {whose}, {second.title}, has "
            f"{_speed(second)} ({factor:.2f} times), and their rounds overlap."
        )
    else:
        sentence = (
            f"{best.title} wins: {_speed(best)}, {factor:.2f} times the fastest {whose}, {second.title} "
            f"({_speed(second)})."
        )
    said = [sentence]
    if best.name not in BACKPROP and second.name not in BACKPROP:
        said += [
            f"Against DDP, {_speed(row)}: {best.title} is {_times(best.to_backprop)}."
            for row in rows
            if row.name in BACKPROP and best.to_backprop is not None
        ]
    return said


def _against_ideal(row: Figures) -> str:
    assert row.ideal is not None, "asked for rows that have one"
    ideal = row.ideal
    slowest = max(row.devices, key=lambda device: device.step_seconds or 0.0)
    lost = sorted(
        ((share, _WAYS[kind]) for kind, share in slowest.shares.items() if kind in _WAYS and share >= _LEAST),
        reverse=True,
    )
    unequal = ""
    if ideal.speedup < _EVEN * len(row.devices):
        steps = " and ".join(f"{1e3 * (device.step_seconds or 0.0):,.1f}" for device in row.devices)
        unequal = f" It is not {len(row.devices)} because the stages' steps take {steps} ms."
    went = ", ".join(f"{100 * share:.1f} % to {way}" for share, way in lost) or "nothing went elsewhere"
    return (
        f"{row.label} reaches {100 * ideal.efficiency:.1f} % of its ideal: speed-up {ideal.measured_speedup:.2f} of "
        f"{ideal.speedup:.2f}.{unequal} Its slowest stage, {slowest.name}, computed "
        f"{100 * slowest.shares.get('busy', 0.0):.1f} % of the time; {went}."
    )


def _cuts(rows: Sequence[Figures]) -> list[str]:
    """Which layers each pipeline has on which stage."""
    cuts: dict[str, list[str]] = {}
    for row in rows:
        stages = [device.name for device in row.devices]
        if len(stages) > 1 and stages[0].startswith("stage"):
            cuts.setdefault(", ".join(stages), []).append(row.label)
    return ["; ".join(f"{', '.join(labels)}: {stages}" for stages, labels in cuts.items()) + "."] if cuts else []


def _with_feeder(rows: Sequence[Figures]) -> list[str]:
    from_memory = {row.name: row for row in rows if row.source == "memory"}
    kept = [
        f"{row.name} {100 * (row.images_per_second or 0.0) / (from_memory[row.name].images_per_second or 1.0):.0f} %"
        for row in rows
        if row.source == "feeder" and row.name in from_memory
    ]
    return [f"With the feeder in the loop, of the speed from memory: {', '.join(kept)}."] if kept else []


def _claim(rows: Sequence[Figures]) -> str:
    ours = next((row for row in rows if row.name == "cff-1" and row.to_backprop is not None), None)
    claim = f"The paper (Aghagolzadeh & Ezoji 2025) claims {PAPER_CLAIM} times per epoch over DataParallel on two T4."
    if ours is None or ours.to_backprop is None:
        return f"{claim} Here cff-1 or ddp has no figure, so there is nothing to hold against it."
    factor = ours.to_backprop.of_medians
    verdict = "that is confirmed here" if factor >= PAPER_CLAIM else "that is not reached here"
    single = next((row for row in rows if row.name == "backprop"), None)
    alone = ""
    if single is not None and single.images_per_second:
        alone = f" and {(ours.images_per_second or 0.0) / single.images_per_second:.2f} times backprop on one of them"
    data_parallel = next((row for row in rows if row.name == "dataparallel"), None)
    if data_parallel is not None and data_parallel.images_per_second:
        alone += f", {(ours.images_per_second or 0.0) / data_parallel.images_per_second:.2f} times DataParallel on both"
    return f"{claim} On the devices here it is {factor:.2f} times DDP{alone}: {verdict}."


def _speed(row: Figures) -> str:
    return f"{row.images_per_second or 0.0:,.0f} images/s"


def _times(ratio: Ratio, whom: str = "") -> str:
    return f"{ratio.of_medians:.2f} times as fast{whom} ({ratio.low:.2f} to {ratio.high:.2f} round by round)"
