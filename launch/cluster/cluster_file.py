"""A cluster.yaml as `ray up` takes it: which machine is the head, and how SSH gets there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import RunError, UserError


class NoHeadError(RunError):
    """A cloud lends no head for a cluster now; it may lend workers of it."""


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """What `launch` needs of it.

    Attributes:
        path: the file.
        lent: whether its machines are a cloud's.
        head: the head's address, as it is reached from here.
        workers: addresses of the other machines, as the head reaches them. None of machines that a cloud lends: they
            are gone when they are given back.
        user: who one is on all of them.
        key: the private key's file; None: those that ssh finds itself.
        proxy: the command by which ssh gets to the head, as its own `ProxyCommand`.
        stop_head, stop_worker: the file's own shell command that ends Ray on the head, and on a worker.
    """

    path: Path
    lent: bool
    head: str
    workers: tuple[str, ...]
    user: str
    key: Path | None
    proxy: str | None
    stop_head: str
    stop_worker: str


def read_cluster(path: Path) -> ClusterFile:
    """Reads the file.

    Raises:
        UserError: it is none that `ray up` would take, or its commands run in containers.
        NoHeadError: a cloud lends no head for it now.
        RunError: the cloud refuses what the file asks for.
    """
    try:
        said = yaml.safe_load(path.read_text("utf-8"))
        provider, auth = said["provider"], said["auth"]
        kind, user = str(provider["type"]), str(auth["ssh_user"])
        head = str(provider.get("external_head_ip") or provider["head_ip"]) if kind == "local" else None
        workers = [str(one) for one in provider.get("worker_ips") or []] if kind == "local" else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Give the file that `ray up` was given.") from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else "is no such file"
        raise UserError(
            f"{path}: {reason}. Give a cluster.yaml as `ray up` takes it; the one of localpipe says what is in it."
        ) from error
    if (said.get("docker") or {}).get("container_name"):
        raise UserError(
            f"{path}: has a docker section, and `launch` sees no run folder inside a container. Use `ray exec`, or "
            "leave the section out."
        )
    if head is None:
        said = _as_a_cloud_has_it(said, path)
        head, auth = _head_of(path), said["auth"]
    key = auth.get("ssh_private_key")
    return ClusterFile(
        path=path,
        lent=kind != "local",
        head=head,
        workers=tuple(workers),
        user=user,
        key=None if key is None else Path(str(key)).expanduser(),
        proxy=auth.get("ssh_proxy_command"),
        stop_head=_stop_in(said.get("head_start_ray_commands")),
        stop_worker=_stop_in(said.get("worker_start_ray_commands")),
    )


def _stop_in(commands: list[str] | None) -> str:
    """Of the commands that start Ray, the one before it that ends what is left of an earlier one."""
    return next((command for command in commands or [] if command.rstrip().endswith("ray stop")), "ray stop")


def _as_a_cloud_has_it(said: dict[str, Any], path: Path) -> dict[str, Any]:
    """With what Ray adds: the key that it made."""
    with _asking(path) as sdk:
        filled: dict[str, Any] = sdk.bootstrap_config(said)
    return filled


def _head_of(path: Path) -> str:
    with _asking(path) as sdk:
        try:
            return str(sdk.get_head_node_ip(str(path)))
        except RuntimeError as error:
            raise NoHeadError(f"{path}: has no head now. `ray up {path}` starts it.") from error


@contextmanager
def _asking(path: Path) -> Iterator[Any]:
    """Ray's way to a cloud, without what it prints meanwhile. Raises RunError where the cloud refuses."""
    from ray.autoscaler import sdk  # noqa: PLC0415 (seconds)

    logging.getLogger("ray.autoscaler").setLevel(logging.CRITICAL)  # it logs an error's traceback, and raises it, too
    sdk.configure_logging(log_style="pretty", color_mode="false", verbosity=0)
    panics = StringIO()
    try:
        with redirect_stdout(StringIO()), redirect_stderr(panics):
            yield sdk
    except RunError:
        raise
    except Exception as error:  # whatever a cloud's library raises
        if said := panics.getvalue().strip():  # of which Ray's own error tells nothing
            raise RunError(f"{path}: the cloud refuses.\n{said}") from error
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RunError(f"{path}: {line.strip().rstrip('.:')}.") from error
