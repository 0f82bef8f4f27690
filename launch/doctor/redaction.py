"""Takes out of a text what a stranger should not read in it: names of user and machine, paths, addresses."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NOBODY = {"root", "user", "localhost"}
"""Names that say nothing of anybody."""
_HOMES = re.compile(r"(?<![\w.])/(home|Users)/[^/\s\"']+")
_ADDRESS = re.compile(r"(?<![\d.])(?!127\.|0\.0\.0\.0)(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")


@dataclass(frozen=True, kw_only=True)
class Redaction:
    """What is replaced.

    Attributes:
        folders: absolute paths, and what stands in place of each: {"/home/ada": "~"}.
        words: names, replaced where they stand as whole words: {"ada": "USER"}.
    """

    folders: Mapping[str, str]
    words: Mapping[str, str]

    def text(self, text: str) -> str:
        """The text without them, without other people's home folders, and without IPv4 addresses but the loopback's."""
        for folder in sorted(self.folders, key=len, reverse=True):  # one within another goes first
            text = re.sub(rf"{re.escape(folder)}(?![\w-])", self.folders[folder], text)
        text = _HOMES.sub(r"/\1/USER", text)
        for word in sorted(self.words, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", self.words[word], text)
        return _ADDRESS.sub("ADDRESS", text)

    def values(self, values: Any) -> Any:
        """JSON values, every text in them without these; names of fields stay."""
        if isinstance(values, str):
            return self.text(values)
        if isinstance(values, dict):
            return {name: self.values(value) for name, value in values.items()}
        if isinstance(values, list | tuple):
            return [self.values(value) for value in values]
        return values


def redaction_here(folders: Mapping[str, str]) -> Redaction:
    """That of this machine and whoever uses it.

    Args:
        folders: further paths by what they are called: {"WORK": "/tmp/localpipe-x"}.
    """
    named = {
        "~": str(Path.home()),
        "PYTHON": sys.prefix,
        "CODE": str(Path(__file__).parents[2]),
        "HERE": str(Path.cwd()),
        **folders,
    }
    paths = {path: name for name, given in named.items() for path in (given, str(Path(given).resolve()))}
    paths = {path: name for path, name in paths.items() if Path(path).is_absolute() and path != "/"}
    hosts = {socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")}
    hosts |= {host.split(".", 1)[0] for host in hosts}
    users = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")} | {_user(), Path.home().name}
    words = dict.fromkeys(hosts, "HOST") | dict.fromkeys(users, "USER")
    return Redaction(folders=paths, words={word: name for word, name in words.items() if word and word not in _NOBODY})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
