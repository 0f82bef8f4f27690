"""What Ray says of a worker's end, as an error that names the worker; and which of several errors is the cause."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    RayError,
    RayTaskError,
)
from torch.distributed import DistError

from pipeline.errors import NonFiniteLossError, PeerLostError, RunError, StageFailedError


class WorkerDiedError(StageFailedError):
    """A worker's process is gone."""


class HostLostError(WorkerDiedError):
    """A machine, or Ray on it, is gone, and all workers there with it.

    Args:
        nodes: those that are gone, by Ray's ids, where Ray itself may not know yet.
    """

    def __init__(self, message: str, nodes: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.nodes = nodes


class ClusterLostError(HostLostError):
    """A process of Ray's is gone without which nothing can be started any more: one that this process started for a
    private cluster, or the head of one that was joined, or Ray on the launching machine."""


class WorkerUnreachableError(StageFailedError):
    """A worker may live, and Ray cannot reach it.

    Args:
        worker: its name.
    """

    def __init__(self, worker: str) -> None:
        super().__init__(f"{worker} cannot be reached: Ray lost the connection to its process")
        self.worker = worker


def own_error(error: RayError) -> RunError | None:
    """What the worker itself raised, where that names its cause already."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, RunError) else None


def failure_of(name: str, error: RayError) -> RunError:
    """A worker's error by its name: its own where it has one, else what Ray says of its end. In one line."""
    own = own_error(error)
    if own is not None:
        return own
    if isinstance(error, RayTaskError):
        cause = error.cause
        said = f"{type(cause).__name__}: {_lines(str(cause))[0]}"
        if isinstance(cause, (DistError, ConnectionError)):
            return PeerLostError(f"{name} lost the connection to its neighbours ({said})")
        return StageFailedError(f"{name} failed: {said}")
    if isinstance(error, GetTimeoutError):
        return StageFailedError(f"{name} did not answer in time")
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        return StageFailedError(f"{name} could not start: {_lines(str(error))[-1]}")
    if isinstance(error, ActorUnavailableError):
        return WorkerUnreachableError(name)
    return _death_of(name, error)


def culprit(failures: Sequence[RunError]) -> RunError:
    """Of several workers' errors the one that explains the others: deaths before what their neighbours say of it, and
    of losses that are no number that of the lowest layer, as such numbers go downstream."""
    cause = min(failures, key=_rank)  # of equals the first
    if isinstance(cause, NonFiniteLossError):
        return min((error for error in failures if isinstance(error, NonFiniteLossError)), key=lambda one: one.layer)
    return cause


def is_explained(failures: Sequence[RunError]) -> bool:
    """Whether one of them is more than a neighbour's loss."""
    return any(not isinstance(error, PeerLostError | WorkerUnreachableError) for error in failures)


def _rank(error: RunError) -> int:
    """How likely an error is the cause of others, from 0: what dies or fails leaves neighbours without a connection."""
    match error:
        case HostLostError():
            return 0
        case WorkerDiedError():
            return 1
        case WorkerUnreachableError():
            return 3
        case PeerLostError():
            return 4
        case _:
            return 2


def _death_of(name: str, error: RayError) -> RunError:
    """Why a worker died, as far as Ray knows; it tells by sentences alone."""
    said = str(error)
    facts = dict(re.findall(r"^\s*(pid|ip): (\S+)$", said, re.MULTILINE))
    host = facts.get("ip")
    if isinstance(error, LocalRayletDiedError | NodeDiedError) or re.search(r"\bnode (has died|was terminated)", said):
        return HostLostError(f"{name} died: host {host or 'unknown'} lost")
    where = f" on {host}" if host else ""
    if re.search(r"low on memory|out of memory \(OOM\) kill|OutOfMemory", said):
        return WorkerDiedError(f"{name} died: Ray ended it, as memory{where} ran out")
    process = f"its process{' ' + facts['pid'] if 'pid' in facts else ''}{where}"
    return WorkerDiedError(f"{name} died: {process} has ended: killed, crashed or out of memory")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()] or [""]
