"""Downloads that can be interrupted and go on where they stopped."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from pipeline.data.sources.base import Progress

_TIMEOUT = 10  # seconds to connect, and between two arrivals of bytes
_ATTEMPTS = 3  # a connection that breaks after bytes arrived is taken up again
_CHUNK = 1 << 18


class UnreachableError(Exception):
    """A site does not give the file; the message says which and why."""


def download(url: str, target: Path, progress: Progress) -> None:
    """Get ``url`` into ``target``; until it is whole it is ``target.part``, from which a later call goes on.

    Raises:
        UnreachableError: no connection, an error answer, or silence for 10 s.
        OSError: the file cannot be written (a full disk).
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(_ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, before, progress)
            part.replace(target)
            return
        except _NetworkError as cause:
            arrived = (part.stat().st_size if part.exists() else 0) - before
            if arrived <= 0 or attempt == _ATTEMPTS - 1:
                raise UnreachableError(f"{url}: {cause}") from None


class _NetworkError(Exception):
    """The network's part of what can go wrong, apart from the disk's."""


def _continue(url: str, part: Path, start: int, progress: Progress) -> None:
    # A person may well give a file:// or ftp:// address; what arrives is checked by md5.
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})  # noqa: S310
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as cause:
        if cause.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            part.unlink()  # longer than the file: of something else
            _continue(url, part, 0, progress)
            return
        raise _NetworkError(f"HTTP {cause.code} {cause.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as cause:
        raise _NetworkError(str(getattr(cause, "reason", cause))) from None
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the site sends the whole file
        left = int(answer.headers.get("Content-Length") or 0)
        total = start + left if left else 0
        with part.open("ab" if start else "wb") as file:
            done = start
            while chunk := _read(answer):
                file.write(chunk)
                done += len(chunk)
                progress(f"downloading {part.stem}", done, total)
    if total and done < total:
        raise _NetworkError(f"the connection ended after {done} of {total} bytes")


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as cause:
        raise _NetworkError(str(cause)) from None
