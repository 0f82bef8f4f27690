"""`launch PRESET`: a run from its settings to its folder."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

from launch.command_line.parse import RunArguments
from launch.command_line.setting_names import as_flags
from launch.output import live
from launch.output.announce import announce, dry_run, opening
from launch.output.console import counted, make_console, say, warn
from launch.output.data_lines import left_out, warnings
from launch.output.display import Display, print_summary
from launch.output.kept import checkpoint_in
from launch.output.kept import kept as as_kept
from launch.output.live import Now
from launch.output.logs.places import check_logs
from launch.output.mirror import Mirror, check_mirror
from launch.output.progress import ProgressLine
from launch.output.run import Run
from launch.output.run_folder import RunFolder, command_line, new_path, run_name
from launch.output.summary import shares_cores, summarise
from launch.output.troubles import Troubles
from launch.output.wishes import CHECKPOINT_WISH, TRACE_WISH, Wishes, read_trace_wish
from launch.signals import INTERRUPTED, Interrupt, heard_by
from pipeline.checkpoints.folder import CheckpointFolder, Manifest
from pipeline.config import build, checks
from pipeline.config.build import build_run
from pipeline.config.devices import local_devices, num_cores
from pipeline.config.interval import read_interval
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import RunError
from pipeline.layers.state import State
from pipeline.nets.patches import patch_of, patch_warning
from pipeline.runtime.checkpointing import Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.initial import InitialWeights, begun
from pipeline.runtime.keeper import ends
from pipeline.runtime.observer import Observer
from pipeline.runtime.recovery import recovering
from pipeline.runtime.states import Course, RunState
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.trace import StageTrace, TraceWish
from workers.cluster import StartingCluster
from workers.where import where


def train(arguments: RunArguments, console: Console, *, began: float) -> int:
    """Runs what was asked for; prints progress and result. Returns the exit status.

    Args:
        began: when the command was typed, in seconds since 1970.

    Raises:
        UserError: before anything has started.
        RunError: the run failed; what was learned is in its folder.
    """
    finished = run(arguments, console, began=began, interrupts=Interrupts())
    return INTERRUPTED if finished is not None and finished.status == "interrupted" else 0


def run(
    arguments: RunArguments, console: Console, *, began: float, interrupts: Interrupts, command: str | None = None
) -> Run | None:
    """As ``train``. Returns what the run left; None for a dry run.

    Args:
        interrupts: by which it is stopped.
        command: what was typed, for the summary. Default: the process's command line.
    """
    settings = checked(build.expand_baseline(arguments.run))
    path = new_path(settings.run_dir, settings.preset)
    initial = InitialWeights.asked_for(settings)
    if settings.checkpoint.mirror is not None and not arguments.dry_run:
        check_mirror(settings.checkpoint.mirror, new=run_name(path))
    aside = make_console(quiet=arguments.quiet)  # what is no result
    with ExitStack() as stack:
        stack.enter_context(heard_by(interrupts.hear))
        on_ray = settings.pipeline.executor == "ray"
        needs_ray = on_ray and (not arguments.dry_run or where(settings.pipeline.ray_address).joined)
        say(aside, as_flags(opening(settings, where(settings.pipeline.ray_address) if needs_ray else None)))
        starting = stack.enter_context(StartingCluster(settings)) if needs_ray else None
        settings, dataset = open_dataset(settings, aside)
        if starting is not None:
            devices = starting.wait()
            if starting.dashboard is not None:
                token = f", which asks for the token {starting.token}" if starting.token is not None else ""
                say(aside, f"Ray's dashboard: {starting.dashboard}{token}")
        else:
            pipe = settings.pipeline
            devices = local_devices(pipe.device, pipe.threads, pipe.precision)
        if arguments.dry_run:
            dry_run(settings, dataset, devices, path, console, initial)
            return None
        if settings.pipeline.is_measured:
            from launch.balance import resolve_measured  # noqa: PLC0415 (the planner, which few runs need)

            settings = resolve_measured(settings, dataset, devices, aside)
        spec = begun(build_run(settings, devices, dataset=dataset), initial)
        folder = RunFolder(spec, path, warn=warn)
        checkpointing = checkpointing_of(spec, folder)
        job = Job(spec, dataset, folder, checkpointing, starting, command=command or command_line(), began=began)
        return carry_out(job, console, aside, interrupts, verbose=arguments.verbose)


@dataclass(frozen=True)
class Job:
    """A run that is about to begin, or to go on.

    Attributes:
        cluster: Ray, where the run is through it.
        command: what was typed, for the summary.
        began: when that was, in seconds since 1970.
    """

    spec: RunSpec
    dataset: Dataset
    folder: RunFolder
    checkpointing: Checkpointing
    cluster: StartingCluster | None
    command: str
    began: float


def carry_out(job: Job, console: Console, aside: Console, interrupts: Interrupts, *, verbose: bool) -> Run:
    """Trains, writes what was learned, prints the result.

    Args:
        aside: for what is no result.

    Raises:
        RunError: the run failed; its ``kept`` says what is left of it.
    """
    url = job.spec.settings.checkpoint.mirror
    with nullcontext() if url is None else Mirror(url, job.folder.path, warn) as mirror:
        if mirror is not None:
            say(aside, f"copied to {mirror.url}")
        return _carry_out(job, console, aside, interrupts, mirror, verbose=verbose)


def _carry_out(
    job: Job, console: Console, aside: Console, interrupts: Interrupts, mirror: Mirror | None, *, verbose: bool
) -> Run:
    spec, dataset, folder = job.spec, job.dataset, job.folder
    pipe = spec.settings.pipeline
    if pipe.executor == "threads" and spec.device == "cpu" and spec.num_stages > num_cores():
        warn(f"{spec.num_stages} stages share {counted(num_cores(), 'core')}: they will take turns.")
    for sentence in job.cluster.warnings if job.cluster is not None else []:
        warn(sentence)
    folder.list_skipped(left_out(dataset))
    announce(aside, spec, dataset)
    num_images = dataset.images_per_pass("train", spec.settings.train.batch_size)
    result: RunResult | None
    failure: RunError | None = None
    hosts = job.cluster.hosts() if job.cluster is not None else []
    with Display(
        spec, num_images, aside, began=job.began, verbose=verbose, named=as_flags, joined=bool(hosts)
    ) as display:
        output = _Output(spec, folder, display, interrupts, mirror)
        try:
            interrupts.begun = True
            with _on_board(job, output):
                result = _train(job, output)
        except RunError as error:
            failure, result = error, error.result
        except KeyboardInterrupt:
            if checkpoint_in(folder.path):  # stopped while it was started anew after a failure
                say(console, f"go on with: launch resume {folder.path}")
            elif not display.has_reports:
                folder.discard()
            raise
    if failure is not None and result is None:
        if display.has_reports or checkpoint_in(folder.path):
            folder.draw(folder.path)
        else:
            folder.discard()
        failure.kept = as_kept(None, folder.path)
        raise failure
    spec = output.spec
    summary = summarise(
        spec,
        dataset,
        result,
        output.course,
        command=job.command,
        began=job.began,
        reading=display.reading,
        warnings=[*([display.hint] if display.hint else []), *output.troubles.said],
        hosts=hosts,
    )
    where = folder.finish(result, summary)
    if result.status == "finished" and job.checkpointing.folder is not None:
        checkpoints = CheckpointFolder(job.checkpointing.folder)
        checkpoints.keep_newest(0, ends(spec, checkpoints))
    print_summary(console, summary, str(where), named=as_flags)
    if result.status == "interrupted" and checkpoint_in(where):
        say(console, f"go on with: launch resume {where}")
    with heard_by(interrupts.hear):  # last: pictures take seconds, for which nobody should wait for the result
        folder.draw(where)
    folder.release()
    if failure is not None:
        failure.kept = as_kept(result, where)
        raise failure
    return Run(spec=spec, result=result, folder=where, summary=summary)


def checkpointing_of(spec: RunSpec, folder: RunFolder) -> Checkpointing:
    """Where a run in this folder saves its checkpoints, if it saves any."""
    every = read_interval(spec.settings.checkpoint.checkpoint_every)
    return Checkpointing(folder=folder.checkpoints if every is not None else None)


def checked(settings: Settings) -> Settings:
    """Settings that can be a run's, as far as can be told before its data are opened. Raises UserError otherwise."""
    checks.check(settings)
    checks.check_data(settings)
    checks.check_trace(settings.trace, settings.profile, settings.pipeline.executor)
    check_logs(settings)
    return settings


def open_dataset(settings: Settings, console: Console) -> tuple[Settings, Dataset]:
    """The data, and the settings that fit it."""
    with ProgressLine(console) as line:
        dataset = build.open_data(settings, progress=line.report)
    for sentence in warnings(dataset):
        warn(sentence)
    asked, settings = patch_of(settings.net), build.resolve(settings, dataset)
    if asked is not None and (problem := patch_warning(asked, settings.net, dataset.index.shape)):
        warn(as_flags(problem))
    return settings, dataset


def _train(job: Job, observer: Observer) -> RunResult:
    spec, begin = job.spec, job.checkpointing
    if spec.settings.pipeline.executor != "ray":
        from pipeline.runtime.here import train_here  # noqa: PLC0415

        return train_here(spec, job.dataset, observer, begin)
    from workers.lasting import LastingWorkers  # noqa: PLC0415 (it imports Ray, which is being started meanwhile)

    cluster = job.cluster
    assert cluster is not None, "Ray was started or joined"
    with LastingWorkers(spec, cluster.renew if cluster.is_private else None, cluster.silent) as workers:
        return recovering(spec, workers.train, observer, begin)


def _on_board(job: Job, output: _Output) -> AbstractContextManager[object]:
    """On a cluster that others can join, they can see where the run is (`launch top --address`)."""
    if job.cluster is None or job.cluster.is_private:
        return nullcontext()
    from workers.board import Board  # noqa: PLC0415 (it imports Ray, which is there by now)

    def is_outdated(note: bytes) -> bool:
        now = live.loads(note)
        return now is None or live.outdated(now)

    name = f"{socket.gethostname()}:{job.folder.path.resolve()}"
    return Board(name, lambda: None if output.now is None else live.dumps(output.now), is_outdated)


class _Output(Observer):
    """Shows a run's progress, notes it in the run's folder, and stops the run when that is asked for."""

    wants_best = True

    def __init__(
        self, spec: RunSpec, folder: RunFolder, display: Display, interrupts: Interrupts, mirror: Mirror | None
    ) -> None:
        self.spec, self._mirror = spec, mirror
        self._folder, self._display, self._interrupts = folder, display, interrupts
        self._log_every, self._last_look = spec.settings.log_every, 0.0
        self._checkpoint_wishes = Wishes(folder.path / CHECKPOINT_WISH)
        self._trace_wishes = Wishes(folder.path / TRACE_WISH)
        self.course = Course()
        self.now: Now | None = None
        self.troubles = Troubles(lambda sentence: warn(as_flags(sentence)), shared=shares_cores(spec))

    def pass_finished(self, report: PassReport) -> None:
        self._folder.observe(report)
        self._display.observe(report)

    def progressed(self, statuses: list[Status]) -> None:
        if statuses and time.perf_counter() - self._last_look >= self._log_every:
            self._last_look = time.perf_counter()
            self._display.follow(statuses)
            self.troubles.look(statuses)
            self._folder.follow(statuses, self._display.meters)
            self.now = self._display.now
            self._folder.show(self.now)

    def improved(self, epoch: int, weights: State) -> None:
        self._folder.save_best(weights)

    def checkpointed(self, manifest: Manifest) -> None:
        self._checkpoint_wishes.granted()
        self._display.checkpointed(manifest)
        if self._mirror is not None:
            self._mirror.copy()

    def asked_to_save(self) -> bool:
        return self._checkpoint_wishes.asked() is not None

    def asked_to_trace(self) -> TraceWish | None:
        text = self._trace_wishes.asked()
        return read_trace_wish(text) if text is not None else None

    def traced(self, trace: StageTrace) -> None:
        file = self._folder.traced(trace)
        if file is not None:
            self._trace_wishes.granted()
            self._display.say(f"trace of {counted(len(trace.steps), 'step')}: {file}")

    def interrupted(self) -> bool:
        return self._interrupts.asked.is_set()

    def notified(self, sentence: str) -> None:
        self._display.say(as_flags(sentence))

    def entered(self, state: RunState) -> None:
        self.course.enter(state)
        if state is RunState.RESTARTING:
            self._trace_wishes.forget()  # what stages were about to trace is lost

    def noted(self, title: str, text: str) -> None:
        self._display.say(f"{title}: {self._folder.note(title, text)}")

    def divided(self, spec: RunSpec) -> None:
        self.spec = spec
        self.troubles.divide(shared=shares_cores(spec))
        self._display.divide(spec)
        self._folder.divide(spec)

    def waits_for(self, what: str) -> None:
        self._display.wait_for(what)


class Interrupts:
    """What Ctrl-C, SIGTERM and SIGHUP do to a run, or whoever sets ``asked``.

    Before it has begun there is nothing to keep: it stops at once. After that the first one asks the run to stop and
    keep what it learned, the second one of the same kind stops at once. One of each kind is one wish: a machine that
    goes down sends several, and Ray sends its own to all processes of a job, a sweep's runs among them, to which the
    sweep hands it on. While a stop at once is under way no more are heard (``launch.signals.Interrupt``).
    """

    def __init__(self, asked: threading.Event | None = None) -> None:
        self.asked = asked if asked is not None else threading.Event()
        self.begun = False
        self._heard: set[int] = set()
        self._interrupt = Interrupt()

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        if number in self._heard or not self.begun:
            self._interrupt(number, frame)
        self._heard.add(number)
        self.asked.set()
