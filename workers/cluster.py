"""Joining a Ray cluster, or starting a private one for the length of a run."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.config.build import num_stages
from pipeline.config.checks import num_layers
from pipeline.config.devices import Devices, local_devices, num_cores
from pipeline.config.settings import PipelineSettings, Settings
from pipeline.errors import ResourcesError, RunError
from pipeline.runtime.allocator import ENVIRONMENT
from workers.where import knock, unreachable, where

if TYPE_CHECKING:
    from workers.hosts import Host
    from workers.private import PrivateCluster  # it imports Ray, which takes a second

_SIGACTION = 512  # bytes that hold a C library's struct sigaction, whichever it is
_SOON, _LEAVE = 10.0, 60.0  # seconds that Ray usually takes to end at most, and that it may take
_LOOK = 0.1  # seconds between two looks at a thread, in which signals are heard

_LEFT_OUT = "A worker died or was killed while executing|Raylet is terminated|The node with node id"
"""Messages of Ray's own, paragraphs and stacks, before the run's line says what died."""

_UNASKED = "RAY_IGNORE_UNHANDLED_ERRORS"

_METRICS = "RAY_enable_metrics_collection"

_RAY_ENVIRONMENT = {
    # By default Ray's workers yield to every other process (niceness 15). Here they are what the machine is for.
    "RAY_worker_niceness": "0",
    # Processes that wait for an actor import meanwhile what takes longest. None of this project's own modules: they
    # must come from where the launching process has them.
    "RAY_preload_python_modules": "torch,torch.distributed,webdataset,tyro",
    # Ray would note every call, and a run asks its stages some times a second: the notes of 100,000 calls for Ray's own
    # tools, which nobody opens on a private cluster, would fill the head's memory.
    "RAY_task_events_report_interval_ms": "0",
    # Ray's head ends a node that is slow to answer five times, which a busy machine's may be. Here both are processes
    # of one machine, and whether they live is looked at (``workers.watch.OwnCluster``).
    "RAY_health_check_failure_threshold": "1000",
}


class StartingCluster:
    """Ray for a run, joined or started in a thread of its own while the caller does something else. A context manager.

    The thread lives as long as the block and shuts Ray down at its end: the processes of a private cluster end with
    the thread that started them, and Ray leaves the process's signal handlers alone where it starts in another thread
    than the main one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.failed = False
        """Whether the run has failed, which ``__exit__`` sees only where its error leaves the block."""
        self._prepare()

    def _prepare(self) -> None:
        self._devices: Devices | None = None
        self._error: BaseException | None = None
        self._private: PrivateCluster | None = None
        self._silent: list[Host] = []
        self._starts = False  # whether Ray is this one's to end
        self._ready, self._finished = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="ray", daemon=True)

    def __enter__(self) -> Self:
        """Errors as of ``wait``, where they show at once."""
        pipe, ray = self._settings.pipeline, sys.modules.get("ray")
        if pipe.ray_address is not None or ray is None or not ray.is_initialized():
            knock(where(pipe.ray_address).address)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.failed = self.failed or isinstance(error, RunError)
        with _deaf():  # leaving now would leave Ray's processes behind; they are going already
            self._leave()

    @property
    def dashboard(self) -> str | None:
        """Where a private cluster's dashboard is, if it was asked for and Ray tells."""
        import ray  # noqa: PLC0415 (it has been started)

        url = ray._private.worker.get_dashboard_url() if self._settings.pipeline.dashboard else None
        return f"http://{url}" if url else None

    def hosts(self) -> list[Host]:
        """The machines of a cluster that was joined; none of a private one, which is this machine."""
        from workers.hosts import living_hosts  # noqa: PLC0415 (it imports Ray, which is here by now)

        return [] if self.is_private else living_hosts()

    @property
    def token(self) -> str | None:
        """What a private cluster asks for, also its dashboard."""
        return self._private.token if self._private is not None else None

    @property
    def silent(self) -> frozenset[str]:
        """Nodes by Ray's ids that do not answer, and that Ray may count as alive for a minute yet."""
        return frozenset(host.node for host in self._silent)

    @property
    def warnings(self) -> list[str]:
        """What is worth knowing of the cluster."""
        from workers.tokens import exposed_token  # noqa: PLC0415 (it imports Ray, which is here by now)

        exposed = exposed_token() if not self.is_private else None
        away = [f"host {host} does not answer: the run does without it." for host in self._silent]
        return away if exposed is None else [exposed, *away]

    @property
    def is_private(self) -> bool:
        """Whether Ray was started here, for this run alone."""
        return self._private is not None

    def renew(self) -> None:
        """Ends what is left of Ray after one of its processes has died, and starts it anew. Errors as of ``wait``."""
        self._leave()
        self._prepare()
        self._thread.start()
        self.wait()

    def _leave(self) -> None:
        """Has Ray end, for as long as that may take."""
        self._finished.set()
        # A signal amid an import may leave that import locked for good, in this thread too.
        self._thread.join(_SOON)
        if self._thread.is_alive() and self._starts:
            # Whoever stopped this program has stopped its processes as well, and they hang: Ray would wait a minute for
            # them and end the program then. Or they are only starting, on a busy machine.
            from workers.watch import end_own  # noqa: PLC0415 (it imports Ray, which is here by now)

            end_own()
            self._thread.join(_LEAVE)

    def wait(self) -> Devices:
        """Waits until Ray is there; gives the devices that stages can be placed on.

        Raises:
            ResourcesError: the cluster cannot be reached, or lacks the GPU or the precision that is asked for.
        """
        while not self._ready.wait(_LOOK):  # a signal is handled between two looks
            pass
        if self._error is not None:
            raise self._error
        assert self._devices is not None, "there is an error or there are devices"
        return self._devices

    def _keep(self) -> None:
        # Read when Ray is imported, so it holds for whatever else this process does with Ray: it leaves out no more.
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _LEFT_OUT)
        # Read at every error that nobody asks for: of an attempt at the run that is over.
        told = os.environ.setdefault(_UNASKED, "localpipe") == "localpipe"
        try:
            import ray  # noqa: PLC0415 (a second, and the caller has other things to do meanwhile)

            self._starts = not ray.is_initialized()  # a notebook or a test may keep its own, which this leaves alone
            with _handlers_kept():
                self._devices, self._private, self._silent = _join_or_start(self._settings)
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            self._error = error
        self._ready.set()
        self._finished.wait()
        if self._starts:
            ray.shutdown()
        if told:
            os.environ.pop(_UNASKED, None)
        if self._private is not None:
            self._private.forget(keep_logs=self.failed)


@contextmanager
def _deaf() -> Iterator[None]:
    """Within it, signals that ask the program to stop do nothing, where this thread is the one that hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Puts the process's signal handlers back at its end, from any thread, which Python's ``signal`` does not.

    Ray's own library takes over SIGTERM, to print a stack and abort; Python does not see that it did.
    """
    libc = ctypes.CDLL(None)
    actions = {number: ctypes.create_string_buffer(_SIGACTION) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, action in actions.items():
        libc.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in actions.items():
            libc.sigaction(int(number), action, None)


@contextmanager
def ray_cluster(settings: Settings) -> Iterator[Devices]:
    """Ray for a run; gives the devices that stages can be placed on. A private cluster ends with the block.

    Raises:
        ResourcesError: as ``StartingCluster.wait``.
    """
    with StartingCluster(settings) as starting:
        yield starting.wait()


def _join_or_start(settings: Settings) -> tuple[Devices, PrivateCluster | None, list[Host]]:
    """What is there, the private cluster where one was started, and machines of another one that do not answer."""
    import ray  # noqa: PLC0415

    pipe = settings.pipeline
    place = where(pipe.ray_address)
    if ray.is_initialized():
        return _cluster_devices(pipe, []), None, []
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a training run calls nobody
    if not place.joined:
        devices = local_devices(pipe.device, pipe.threads, pipe.precision)
        # Metrics that nobody can look at cost a core some per mille, and a port.
        os.environ[_METRICS] = str(int(pipe.dashboard))  # anew for each run of this process
        for name, value in {**ENVIRONMENT, **_RAY_ENVIRONMENT}.items():  # the workers inherit it
            os.environ.setdefault(name, value)
        # More stages than cores take turns; Ray must not refuse them on a machine that is theirs alone. It starts as
        # many processes ahead of the actors as it has cores: one for each actor, feeders and coordinator included.
        cores = max(num_cores(), num_stages(settings, devices.count) * pipe.threads)
        coordinators = 1 if settings.method.shared_versions(num_layers(settings), 1) is not None else 0
        # Ray counts a node's GPUs in a way of its own, which may find none where torch finds some.
        gpus = devices.count if devices.kind == "cuda" else None
        from workers.private import PrivateCluster  # noqa: PLC0415 (it imports Ray)

        return devices, PrivateCluster(cores + pipe.feeders + coordinators, gpus, dashboard=pipe.dashboard), []
    join(place.address)
    from workers.heartbeat import silent  # noqa: PLC0415 (it imports Ray)
    from workers.hosts import living_hosts  # noqa: PLC0415 (it imports Ray)

    here, *others = living_hosts()
    away = silent(others)
    devices = _cluster_devices(pipe, away)
    _check_hosts(devices, [here, *(host for host in others if host not in away)])
    return devices, None, away


def join(address: str) -> None:
    """Has this process join the cluster there.

    Raises:
        ResourcesError: it cannot be reached, or asks for another token.
    """
    import ray  # noqa: PLC0415
    from ray.exceptions import AuthenticationError  # noqa: PLC0415

    from workers.tokens import check_token  # noqa: PLC0415 (it imports Ray)

    knock(address)
    try:
        check_token(address)
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
        raise ResourcesError(unreachable(address, str(error).splitlines()[0])) from error


@contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Ray's cluster at an address, whatever its machines have and hold: to look at it.

    Raises:
        ResourcesError: it cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415

    knock(address)
    ours = not ray.is_initialized()
    if ours:
        with _handlers_kept():
            join(address)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _check_hosts(devices: Devices, hosts: Sequence[Host]) -> None:
    """Refuses a cluster whose machines differ in what a run's numbers depend on, as far as they may hold a worker.

    Raises:
        ResourcesError: they differ; the message names them.
    """
    from workers.software import require_same_software  # noqa: PLC0415 (it imports Ray, which is here by now)

    here, *others = hosts
    require_same_software([here, *(host for host in others if (host.gpus if devices.kind == "cuda" else host.cores))])


def _cluster_devices(settings: PipelineSettings, away: Sequence[Host]) -> Devices:
    """What the cluster has, but for these machines."""
    import ray  # noqa: PLC0415

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) - sum(host.gpus for host in away)
    cores = int(there.get("CPU", 1)) - sum(host.cores for host in away)
    if settings.device == "cuda" and not gpus:
        raise ResourcesError("`device` cuda: the Ray cluster has no GPU. Use `device` cpu, or add a GPU node.")
    if settings.device == "cuda" or (settings.device == "auto" and gpus):
        return Devices("cuda", gpus)
    return Devices("cpu", max(1, cores // settings.threads))
