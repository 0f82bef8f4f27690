"""A private Ray cluster: of this machine and this process's user alone.

Its processes listen on the loopback. They ask for a token that is nowhere but in their environment, which the system
shows to the same user and root alone. What they write lies in a folder that is the user's alone; Ray lets everybody
write to its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # it has no types

from pipeline.errors import ResourcesError
from workers.watch import end_groups

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE = 256 << 20  # bytes; only set-up, metrics and weights pass through it
_ATTEMPTS = 3  # to start Ray
_TOO_SLOW = "timed out during startup"

_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"

_PREFIX = "lp-"  # short, as the paths of sockets must be
_SOCKET_PATH = 107  # bytes that the path of a socket may have
_INSIDE = len(f"/{_PREFIX}12345678/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


class PrivateCluster:
    """Ray for this process, started at once.

    Args:
        num_gpus: None: as many as Ray itself finds.
        dashboard: whether its dashboard is started, and its metrics can be asked for.

    Raises:
        ResourcesError: it cannot be started.
    """

    def __init__(self, num_cpus: int, num_gpus: int | None, *, dashboard: bool) -> None:
        self.token = secrets.token_hex(32)
        self._folder = _new_folder()
        self._groups: list[int] = []  # of processes
        self._before = {name: os.environ.get(name) for name in (_MODE, _TOKEN)}
        _set_environment({_MODE: "token", _TOKEN: self.token})
        try:
            with _adapted(self._groups):
                self._start(num_cpus, num_gpus, dashboard=dashboard)
        except BaseException:
            self.forget(keep_logs=True)  # the error may name one of them
            raise

    def _start(self, num_cpus: int, num_gpus: int | None, *, dashboard: bool) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    object_store_memory=_OBJECT_STORE,
                    include_dashboard=dashboard,
                    dashboard_host=_LOOPBACK,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _node_ip_address=_LOOPBACK,
                    _temp_dir=str(self._folder / "ray"),  # Ray opens this one to everybody
                )
            except Exception as error:  # Ray raises nothing more special
                # It gives its processes 30 seconds, which a busy machine may not have for them.
                if _TOO_SLOW in str(error) and attempt < _ATTEMPTS - 1:
                    continue
                raise ResourcesError(
                    f"Ray cannot be started on this machine: {str(error).strip() or type(error).__name__} Wait until "
                    "it is less busy, or use `executor` threads, which needs no Ray."
                ) from error
            else:
                return

    def forget(self, *, keep_logs: bool) -> None:
        """Ends what is left of Ray's processes, puts the environment back and removes what they wrote."""
        end_groups(self._groups)
        _set_environment(self._before)
        if not keep_logs:
            shutil.rmtree(self._folder, ignore_errors=True)


def _set_environment(values: dict[str, str | None]) -> None:
    """Sets variables, or removes those that are None, and has Ray read them, which it does once."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _new_folder() -> Path:
    """A folder of this user's alone, in the default temporary one where the paths of Ray's sockets fit there.

    Raises:
        ResourcesError: it cannot be made.
    """
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(os.fsencode(place)) + _INSIDE > _SOCKET_PATH:
        place = "/tmp"  # noqa: S108 (the folder in it is made new, with a random name)
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    except OSError as error:
        raise ResourcesError(
            f"Ray needs a temporary folder, and {place} is none ({error.strerror}). Name another with RAY_TMPDIR, or "
            "use `executor` threads, which needs no Ray."
        ) from error


@contextmanager
def _adapted(groups: list[int]) -> Iterator[None]:
    """Within it, Ray starts its processes as a private cluster needs them, in groups that are noted."""
    popen: Any = services.ConsolePopen
    resolve: Any = services.resolve_ip_for_localhost

    # Ray's processes form groups of their own. A signal to the launching process's group, as `timeout` and shells send
    # it, would end them before the run has saved its checkpoint. They end with the launching process in any case.
    def start(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options, process_group=0)
        groups.append(process.pid)
        return process

    services.ConsolePopen = start  # type: ignore[misc, assignment]
    # Ray would put the machine's address in the network in place of the loopback's, and then listen on all interfaces.
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.ConsolePopen, services.resolve_ip_for_localhost = popen, resolve  # type: ignore[misc]
