"""What `launch plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from launch.command_line.setting_names import as_flags
from launch.output.console import say
from launch.output.tables import print_table
from launch.plan.measure import Measurement
from pipeline.config.run_spec import RunSpec
from pipeline.planning.costs import LayerCost, Profile
from pipeline.planning.predict import ASSUMED_LINK, Change, Prediction, listed, shown

_MIB = 2**20


def print_layers(console: Console, spec: RunSpec, profile: Profile) -> None:
    """A row per layer: milliseconds of its phases and what it holds, with all devices at work."""
    batch = spec.settings.train.batch_size
    together = f"{profile.num_busy} devices at work" if profile.num_busy > 1 else "one device at work"
    title = f"{spec.net.describe()} on {spec.data_name}, batches of {batch}, {spec.device}: ms of a step, {together}"
    headings = ("layer", "augment", "forward", "loss", "backward", "update", "sum", "alone")
    sizes = ("MB out", "weights", "optimizer", "activations, MiB")
    rows = []
    for index, (busy, alone) in enumerate(zip(profile.busy, profile.alone, strict=True)):
        seconds = (busy.enter, busy.forward, busy.loss, busy.backward, busy.update, busy.seconds, alone.seconds)
        rows.append([str(index + 1), *(f"{1e3 * value:,.1f}" for value in seconds), *_sizes(busy)])
    print_table(console, (*headings, *sizes), rows, title=title)
    say(
        console,
        f"timed in {profile.took:.0f} s; a step varies by {profile.jitter:.1%}; a feeder reads "
        f"{batch / profile.feed_seconds:,.0f} images/s; memory is copied at {profile.copy_bandwidth / 1e9:.1f} GB/s",
    )


def _sizes(cost: LayerCost) -> list[str]:
    mebibytes = (cost.weight_bytes, cost.optimizer_bytes, cost.activation_bytes)
    return [f"{cost.bytes_out / 1e6:,.1f}", *(f"{value / _MIB:,.1f}" for value in mebibytes)]


def print_predictions(console: Console, rows: Sequence[Prediction], profile: Profile, spec: RunSpec) -> None:
    """A row for each number of devices."""
    headings = ("devices", "stages", "layers", "images/s", "speed-up", "ideal", "fill", "utilisation", "MiB a device")
    console.print()
    print_table(
        console,
        (*headings, "limited by"),
        [_cells(row) for row in rows],
        title="predicted, layers divided so that the slowest stage is fastest",
        left=("layers", "limited by"),
    )
    notes = [f"More devices than the {spec.num_layers} layers stay idle."] if rows[-1].devices > spec.num_layers else []
    if spec.device == "cuda" and profile.link_bandwidth is None:
        notes.append(f"No second GPU to measure a link with: {ASSUMED_LINK / 1e9:g} GB/s unless --link says otherwise.")
    for note in notes:
        say(console, note)


def _cells(row: Prediction) -> list[str]:
    memory = f"{min(row.memory) / _MIB:,.0f}–{max(row.memory) / _MIB:,.0f}"
    return [
        str(row.devices),
        str(len(row.stages)),
        shown(row.stages),
        f"{row.images_per_second:,.0f}",
        f"{row.speedup:.2f}",
        f"{row.ideal:.2f}",
        f"{row.fill:.1%}",
        _range(row.utilisation),
        memory if len(row.memory) > 1 else f"{row.memory[0] / _MIB:,.0f}",
        str(row.limit),
    ]


def verdict(launched: Prediction, changes: Sequence[Change]) -> str:
    """A sentence: the run as it would be launched here, what limits it, and what one change would give."""
    devices = f"{launched.devices} device{'s' if launched.devices > 1 else ''}"
    said = (
        f"As launched here on {devices}: {len(launched.stages)} stage{'s' if len(launched.stages) > 1 else ''}, layers "
        f"{shown(launched.stages)}, {launched.images_per_second:,.0f} images/s, limited by {launched.limit}; "
    )
    if not changes:
        return said + "no other partition, feeder, queue depth or transfer dtype would give 1 % more."
    best, *others = changes
    also = f" (next: {others[0].what}, +{others[0].gain:.0%})" if others else ""
    return as_flags(f"{said}{best.what} would give +{best.gain:.0%}{also}.")


def print_measurements(console: Console, measured: Sequence[Measurement]) -> None:
    """Predicted and measured, side by side."""
    headings = ("stages", "layers", "predicted", "measured, images/s", "rounds", "difference")
    rows = [
        (
            listed(one.prediction.stages),
            shown(one.prediction.stages),
            f"{one.prediction.images_per_second:,.0f}",
            f"{one.images_per_second:,.0f}",
            f"{min(one.rounds):,.0f}–{max(one.rounds):,.0f}",
            f"{one.difference:+.1%}",
            _range(one.prediction.utilisation),
            _range(one.utilisation),
        )
        for one in measured
    ]
    console.print()
    print_table(
        console,
        (*headings, "predicted use", "measured use"),
        rows,
        title="the real pipeline on this machine",
        left=("layers",),
    )


def _range(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low}–{high}"
