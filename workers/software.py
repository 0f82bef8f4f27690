"""Whether all machines of a cluster have the same software: the numbers of a run belong to one version of it.

What a machine has is asked by ``installed``, which travels there as it is written here: a machine may have another
version of this project, or none. So it uses nothing of it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError

from pipeline.errors import ResourcesError
from workers.hosts import Host, ask_hosts

_ROOMS = ("pipeline", "workers", "launch")
_GIT_SECONDS = 5.0
_HASH = 10  # digits of a hash that a person compares
_ANSWER = 30.0  # seconds in which a machine that is well starts a process of Ray's and answers

Software = dict[str, str | None]
"""Of Python, torch, Ray and localpipe the versions, and of localpipe the commit, where it is known, and a hash of its
sources ("code"); None for what is not there."""


def installed() -> Software:
    """What is installed for this Python."""

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    folder = _folder()
    versions = {name: version(name) for name in ("torch", "ray", "localpipe")}
    return {"python": platform.python_version(), **versions, "commit": _commit(folder), "code": _code(folder)}


def _folder() -> Path | None:
    """Where this project's sources lie."""
    found = importlib.util.find_spec(_ROOMS[0])
    where = list(found.submodule_search_locations or []) if found is not None else []
    return Path(where[0]).parent if where else None


def _code(folder: Path | None) -> str | None:
    """A hash of this project's Python files."""
    if folder is None:
        return None
    found = hashlib.sha256()
    for file in sorted(file for room in _ROOMS for file in (folder / room).rglob("*.py")):
        found.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:_HASH]


def _commit(folder: Path | None) -> str | None:
    """The commit that the sources are of: of the checkout that they lie in, or that they were installed from."""
    if folder is None:
        return None
    if (folder / ".git").exists():
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):  # without git the hash has to do
            return None
        return done.stdout.strip()[:_HASH] or None
    try:
        origin = importlib.metadata.distribution("localpipe").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    commit = json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    return None if commit is None else str(commit)[:_HASH]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not the same on all machines.

    Attributes:
        what: "torch", "Ray", "Python" or "localpipe".
        found: the machines' names by what they have.
    """

    what: str
    found: dict[str, list[str]]

    def __str__(self) -> str:
        where = [f"{has} on {', '.join(names)}" for has, names in self.found.items()]
        return f"{self.what} is {' and '.join(where)}"


def differences(software: Mapping[str, Software]) -> list[Difference]:
    """What differs between machines, by their names, in a way that a run's numbers or its start may depend on.

    Builds of one version of torch may differ, as that of a machine without a GPU does from the others'.
    """
    shown = {name: {what: has(known) for what, has in _SHOWN.items()} for name, known in software.items()}
    compared = {name: {what: key(known) for what, key in _COMPARED.items()} for name, known in software.items()}
    found = []
    for what in _SHOWN:
        if len({values[what] for values in compared.values()}) > 1:
            by_value: dict[str, list[str]] = {}
            for name, values in shown.items():
                by_value.setdefault(values[what], []).append(name)
            found.append(Difference(what=what, found=by_value))
    return found


def described(known: Software) -> str:
    """This project on a machine: "0.1.0 (commit 1a2b3c4d5e, files 6f7a8b9c0d)"."""
    if known["code"] is None:
        return "not installed"
    commit = f"commit {known['commit']}, " if known["commit"] else ""
    return f"{known['localpipe'] or 'of no version'} ({commit}files {known['code']})"


_SHOWN: dict[str, Callable[[Software], str]] = {
    "Python": lambda known: known["python"] or "none",
    "torch": lambda known: known["torch"] or "none",
    "Ray": lambda known: known["ray"] or "none",
    "localpipe": described,
}
_COMPARED: dict[str, Callable[[Software], object]] = {
    "Python": lambda known: (known["python"] or "").rsplit(".", 1)[0],
    "torch": lambda known: (known["torch"] or "").split("+")[0],
    "Ray": lambda known: known["ray"],
    "localpipe": lambda known: (known["localpipe"], known["code"]),
}


def remedy(found: Sequence[Difference]) -> str:
    """What to do about differences."""
    return f"Install the same {_listed([one.what for one in found])} on every host."


def software_of(hosts: Sequence[Host]) -> dict[Host, Software | RayError]:
    """What each machine has; Ray's error where it cannot be asked."""
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)
    try:
        return ask_hosts(installed, hosts, _ANSWER)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(here)


def require_same_software(hosts: Sequence[Host]) -> None:
    """Refuses machines that differ.

    Raises:
        ResourcesError: they do, or one of them does not answer; the message names them.
    """
    if len(hosts) < 2:
        return
    answers = software_of(hosts)
    for host, answer in answers.items():
        if isinstance(answer, RayError):
            late = isinstance(answer, GetTimeoutError)
            why = f"did not answer within {_ANSWER:g} s" if late else f"cannot be asked ({type(answer).__name__})"
            raise ResourcesError(
                f"host {host} {why}. See that it is well (`ray status`), or take it out of the cluster."
            )
    found = differences({str(host): answer for host, answer in answers.items() if not isinstance(answer, RayError)})
    if found:
        raise ResourcesError(f"The hosts of the cluster differ: {'; '.join(map(str, found))}. {remedy(found)}")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
