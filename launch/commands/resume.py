"""`launch resume RUN`: a run goes on from its last checkpoint, in its folder, to the bits of one that never stopped.

`launch checkpoint RUN` has a run that goes on save one now.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from launch.command_line.arguments import CheckpointArguments, ResumeArguments
from launch.command_line.setting_names import as_flags
from launch.commands.train import Interrupts, Job, carry_out, checked, checkpointing_of, open_dataset
from launch.output.announce import opening
from launch.output.console import counted, make_console, say, warn
from launch.output.going_on import is_locked
from launch.output.logs.figures import steps_at
from launch.output.mirror import check_mirror, fetch
from launch.output.run import Run
from launch.output.run_folder import CHECKPOINTS, RUNS, RunFolder, command_line, load_config
from launch.output.wishes import CHECKPOINT_WISH, ask
from launch.signals import INTERRUPTED, heard_by
from pipeline import plain_json
from pipeline.checkpoints.folder import CheckpointFolder, DamagedError, Manifest
from pipeline.config import settings as settings_module
from pipeline.config.build import build_run
from pipeline.config.devices import local_devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.keeper import history_of
from pipeline.runtime.passes import described
from pipeline.runtime.resume import cut_of, going_on
from pipeline.stores import is_url
from workers.cluster import StartingCluster
from workers.where import where

_CHANGES_BITS = ("lr", "precision")
"""What may change although the numbers change with it, from the checkpoint on."""


def resume(arguments: ResumeArguments, console: Console, *, began: float) -> int:
    """Goes on with a run. Returns the exit status; errors as of ``launch.commands.train.train``."""
    finished = resume_run(arguments, console, began=began, interrupts=Interrupts())
    return INTERRUPTED if finished.status == "interrupted" else 0


def resume_run(arguments: ResumeArguments, console: Console, *, began: float, interrupts: Interrupts) -> Run:
    """As ``resume``. Returns what the run left.

    Raises:
        UserError: nothing to go on from, another process that writes there, other data, or a change that cannot be.
    """
    aside = make_console(quiet=arguments.quiet)
    if is_url(arguments.run):
        say(aside, f"fetching {arguments.run} …")
        run = fetch(arguments.run, RUNS)
    else:
        run = Path(arguments.run)
    if is_locked(run):
        raise UserError(f"{run}: another process writes to it. Wait for its end, or stop it.")
    manifest, saved, settings = _chosen(arguments, run)
    checked(settings)
    if settings.checkpoint.mirror is not None:
        check_mirror(settings.checkpoint.mirror)
    with ExitStack() as stack:
        stack.enter_context(heard_by(interrupts.hear))
        on_ray = settings.pipeline.executor == "ray"
        say(aside, as_flags(opening(settings, where(settings.pipeline.ray_address) if on_ray else None)))
        starting = stack.enter_context(StartingCluster(settings)) if on_ray else None
        settings, dataset = open_dataset(settings, aside)
        if dataset.index.content_hash != saved["data"]["content_hash"]:
            raise UserError(
                f"{settings.data.data} is no longer what the run learned from, so it cannot go on. Bring the data back "
                f"as they were ({saved['data']['folder']}), or train anew."
            )
        pipe = settings.pipeline
        devices = starting.wait() if starting is not None else local_devices(pipe.device, pipe.threads, pipe.precision)
        if pipe.is_measured:
            from launch.balance import resolve_measured  # noqa: PLC0415 (the planner, which few runs need)

            settings = resolve_measured(settings, dataset, devices, aside)
        spec = build_run(settings, devices, dataset=dataset)
        _compare(saved, spec)
        folder = CheckpointFolder(run / CHECKPOINTS)
        try:
            begin = going_on(spec, Checkpointing(folder=folder.path), folder.path, manifest)
            history = history_of(spec, begin)
        except DamagedError as error:
            raise UserError(
                f"{folder.path / manifest.key}: {error}. Remove it, and the one before it is used."
            ) from error
        opened = RunFolder(spec, run, warn=warn, resumed=(history, steps_at(spec, begin.cut)))
        begin = replace(begin, folder=checkpointing_of(spec, opened).folder)
        say(aside, f"going on from {described(spec, begin.cut)}, saved {manifest.facts.get('saved', 'earlier')}")
        job = Job(spec, dataset, opened, begin, starting, command=command_line(), began=began)
        return carry_out(job, console, aside, interrupts, verbose=arguments.verbose)


def checkpoint(arguments: CheckpointArguments, console: Console) -> None:
    """Has a run save a checkpoint. Raises UserError where none goes on there."""
    run = arguments.run
    saved = load_config(run)
    if not is_locked(run):
        raise UserError(f"{run}: no run goes on there. `launch resume {run}` goes on with it.")
    if saved["settings"].get("checkpoint", {}).get("checkpoint_every") == "off":
        raise UserError(f"{run}: was started with --checkpoint-every off, and saves none.")
    folder = CheckpointFolder(run / CHECKPOINTS)
    ask(
        run / CHECKPOINT_WISH,
        "",
        arguments.wait,
        goes_on=lambda: is_locked(run),
        missing=f"{folder.path}: no checkpoint",
        hint="The run saves between two training batches; ask again once it trains.",
    )
    key = folder.whole()[-1]
    manifest = folder.manifest(key)
    say(console, f"saved: {manifest.facts['where']} ({manifest.size / 2**20:,.1f} MiB) in {folder.path / key}")


def _chosen(arguments: ResumeArguments, run: Path) -> tuple[Manifest, dict[str, Any], Settings]:
    """The checkpoint to go on from, what was saved of the run with it, and the settings to go on with.

    Raises:
        UserError: there is none, or the run is over.
    """
    load_config(run)
    folder = CheckpointFolder(run / CHECKPOINTS)
    manifest = folder.newest(passed_over=warn)
    if manifest is None:
        raise UserError(
            f"{run}: has no checkpoint to go on from. `launch --config {run / 'config.json'}` trains it anew."
        )
    saved = _saved_in(folder, manifest)
    asked = settings_module.from_dict(saved["settings"], source=str(folder.path / manifest.key))
    cut = cut_of(manifest)
    epochs = asked.train.epochs
    if arguments.epochs is not None and arguments.epochs != epochs:
        if arguments.epochs < epochs and (cut.restored or cut.passes + bool(cut.steps) > 2 * arguments.epochs):
            raise UserError(
                f"--epochs {arguments.epochs}: the run has trained {-(-cut.passes // 2)} by now. Give more."
            )
        if cut.restored:
            manifest = _before_readouts(folder, run)
    elif (run / "summary.json").is_file() and _is_finished(run):
        raise UserError(f"{run}: the run is over, after {counted(epochs, 'epoch')}. Give --epochs for more.")
    return manifest, saved, _changed(asked, arguments, run)


def _saved_in(folder: CheckpointFolder, manifest: Manifest) -> dict[str, Any]:
    saved = manifest.facts.get("config")
    data = saved.get("data") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or not isinstance(data, dict) or not isinstance(data.get("content_hash"), str):
        raise UserError(f"{folder.path / manifest.key}: does not say what run it is of. Remove it.")
    return saved


def _is_finished(run: Path) -> bool:
    try:
        return bool(plain_json.read(run / "summary.json")["status"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _before_readouts(folder: CheckpointFolder, run: Path) -> Manifest:
    """The checkpoint at the end of the layers' training, which more epochs may follow."""
    for key in reversed(folder.whole()):
        try:
            manifest = folder.manifest(key)
            if not cut_of(manifest).restored:
                folder.verify(manifest)
                return manifest
        except DamagedError as error:
            warn(f"{folder.path / key}: {error}.")
    raise UserError(f"{run}: has no checkpoint from before its readouts' training, so no more epochs can follow.")


def _changed(settings: Settings, arguments: ResumeArguments, run: Path) -> Settings:
    """The run's settings with those that are given now. Says which of them change numbers."""
    pipe, train = settings.pipeline, settings.train
    given = {one.name: value for one in fields(arguments) if (value := getattr(arguments, one.name)) is not None}
    for name in _CHANGES_BITS:
        before = train.lr if name == "lr" else pipe.precision
        if name in given and given[name] != before:
            warn(f"--{name} {given[name]} in place of {before}: from here on the numbers are other than the run's own.")
    if {"stages", "partition", "executor"} & given.keys():
        pipe = replace(pipe, partition="even", stages="auto")
    placed = {name: given[name] for name in _PLACEMENT if name in given}
    pipe = replace(pipe, **{"device": "auto", "transport": "auto", **placed})
    kept = {name: given[name] for name in ("checkpoint_every", "keep_checkpoints", "mirror") if name in given}
    train = replace(train, **{name: given[name] for name in ("epochs", "lr") if name in given})
    return replace(
        settings, run_dir=str(run), pipeline=pipe, train=train, checkpoint=replace(settings.checkpoint, **kept)
    )


_PLACEMENT = (
    "stages", "partition", "executor", "device", "transport", "feeders", "data_on", "precision", "ray_address",
    "dashboard",
)  # fmt: skip


def _compare(saved: dict[str, Any], spec: RunSpec) -> None:
    """Says what changes bits although nobody asked for it."""
    device = saved.get("device")
    if device != spec.device:
        warn(f"the run was on {device} and goes on on {spec.device}: its numbers differ from here on in the last bits.")
