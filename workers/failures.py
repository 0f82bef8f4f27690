"""What Ray says of a worker's end, as an error that names the worker."""

from __future__ import annotations

from ray.exceptions import ActorDiedError, GetTimeoutError, RayError, RayTaskError

from pipeline.errors import RunError, StageFailedError


def _failure(name: str, error: RayError) -> RunError:
    """A worker's error by its name: its own message where it has one, else what Ray says of its death."""
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RunError):
            return cause
        return StageFailedError(f"{name} failed: {type(cause).__name__}: {cause}")
    if isinstance(error, GetTimeoutError):
        return StageFailedError(f"{name} did not answer in time")
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        return StageFailedError(f"{name} could not start: {lines[-1].strip()}")
    return StageFailedError(f"{name} died: {lines[0]}")
