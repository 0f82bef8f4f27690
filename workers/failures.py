"""What Ray says of a worker's end, as an error that names the worker."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from pipeline.errors import RunError, StageFailedError


def own_error(error: RayError) -> RunError | None:
    """What the worker itself raised, where that names its cause already."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, RunError) else None


def failure_of(name: str, error: RayError) -> RunError:
    """A worker's error by its name: its own where it has one, else what Ray says of its end."""
    own = own_error(error)
    if own is not None:
        return own
    if isinstance(error, RayTaskError):
        return StageFailedError(f"{name} failed: {type(error.cause).__name__}: {error.cause}")
    if isinstance(error, GetTimeoutError):
        return StageFailedError(f"{name} did not answer in time")
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        return StageFailedError(f"{name} could not start: {lines[-1].strip()}")
    return StageFailedError(f"{name} died: {lines[0]}")
