"""Runs as Ray jobs on a cluster's head: started, followed and stopped from here.

A job goes on whatever becomes of the connection, and Ray keeps what it printed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from launch.cluster.head import Head
from launch.output.console import say, warn
from launch.signals import INTERRUPTED, heard_by
from pipeline.errors import RunError

_PORT = 8265  # of Ray's dashboard, where jobs are asked for
_TOKEN = 20.0  # seconds to ask for it
_AGAIN = 1.0  # seconds until a job that is said to run, and prints nothing, is looked at again
_RUN, _INTO = "localpipe_run", "localpipe_into"
_RAYS_OWN = re.compile(r"Running entrypoint for job |.*INFO job_manager\.py:\d+ -- ")
"""Lines before the run's own."""


@dataclass(frozen=True)
class Job:
    """A run as a Ray job.

    Attributes:
        id: as Ray calls it.
        run: the name of its folder.
        into: the folder here that it is to be fetched into.
        ended: whether it is over.
    """

    id: str
    run: str
    into: Path
    ended: bool


class Jobs:
    """The jobs of a cluster. Every method raises RunError where the cluster does not answer."""

    def __init__(self, client: Any, at: str) -> None:
        self._client, self._at = client, at

    def start(self, path: Path, job: str, arguments: Sequence[str]) -> Job:
        """Starts `launch` with these arguments in the home folder of the head.

        Args:
            path: the run folder here.
            job: what the job is called; no other one of the cluster may be.
        """
        with self._answering():
            self._client.submit_job(
                entrypoint=f"cd && exec launch {shlex.join(arguments)}",
                submission_id=job,
                metadata={_RUN: path.name, _INTO: str(path.parent)},
            )
        return Job(job, path.name, path.parent, ended=False)

    def all(self) -> list[Job]:
        """The runs that the cluster knows of, the newest last."""
        with self._answering():
            found = [one for one in self._client.list_jobs() if one.submission_id and _RUN in (one.metadata or {})]
        found.sort(key=lambda one: one.start_time or 0)
        return [
            Job(one.submission_id, one.metadata[_RUN], Path(one.metadata[_INTO]), ended=one.status.is_terminal())
            for one in found
        ]

    def follow(self, job: Job, console: Console, aside: Console) -> int | None:
        """Prints what a job prints, from its first line to its last. Ctrl-C and SIGTERM stop the job, which saves a
        checkpoint, and are waited for; a second one does not wait, and nor does SIGHUP, which stops nothing.

        Args:
            aside: for what the job does not say.

        Returns its exit status; None: it goes on, and this is left.
        """
        return asyncio.run(self._follow(job, console, aside))

    async def _follow(self, job: Job, console: Console, aside: Console) -> int | None:
        loop, left, stopping = asyncio.get_running_loop(), asyncio.Event(), set[asyncio.Future[None]]()

        def asked(number: int) -> None:
            if number == signal.SIGHUP or stopping:
                left.set()
            else:
                say(aside, "stopping: the run saves a checkpoint …")
                stopping.add(loop.run_in_executor(None, self._stop, job, aside))

        def hear(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(asked, number)

        with heard_by(hear):
            printing, leaving = asyncio.ensure_future(self._print(job, console)), asyncio.ensure_future(left.wait())
            await asyncio.wait([printing, leaving], return_when=asyncio.FIRST_COMPLETED)
            for task in (printing, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError):
                return await printing
            return None

    def _stop(self, job: Job, aside: Console) -> None:
        try:
            with self._answering():
                self._client.stop_job(job.id)
        except RunError as error:  # what is printed will end as well, and with it this program
            say(aside, f"it was not stopped: {error}")

    async def _print(self, job: Job, console: Console) -> int:
        lines = _Lines(console)
        while True:
            with self._answering(f"The run {job.run} goes on there: `launch attach` shows and fetches it."):
                said = 0
                async for text in self._client.tail_job_logs(job.id):
                    lines.add(text[max(0, lines.count - said) :])
                    said += len(text)
                now = await asyncio.to_thread(self._client.get_job_info, job.id)
            if now.status.is_terminal():
                lines.end()
                return self._status(now)
            await asyncio.sleep(_AGAIN)

    def _status(self, ended: Any) -> int:
        """The exit status of a job that is over, which may have been killed."""
        if ended.status == "STOPPED":
            return INTERRUPTED
        if ended.driver_exit_code is None:
            warn(f"the run on {self._at} was ended: {(ended.message or 'no reason is given').splitlines()[0]}")
            return 1
        return int(ended.driver_exit_code)

    @contextmanager
    def _answering(self, otherwise: str = "") -> Iterator[None]:
        from aiohttp import ClientError  # noqa: PLC0415 (Ray's, which is here by now)

        try:
            yield
        except (RuntimeError, OSError, ClientError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RunError(f"Ray on {self._at} does not answer: {reason}. {otherwise}".strip()) from error


class _Lines:
    """Prints text that comes in pieces, a line at a time, without those of Ray's own at the beginning.

    Attributes:
        count: characters that have come.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._open, self._begun, self.count = console, "", False, 0

    def add(self, text: str) -> None:
        self.count += len(text)
        *lines, self._open = (self._open + text).split("\n")
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """Prints what no line's end came for."""
        if self._open:
            self._line(self._open)
        self._open = ""

    def _line(self, line: str) -> None:
        self._begun = self._begun or not _RAYS_OWN.match(line)
        if self._begun:
            say(self._console, line.rstrip("\r"))


@contextmanager
def jobs_of(head: Head, at: str) -> Iterator[Jobs]:
    """The jobs of a cluster, through its head, with the token that its Ray has.

    Raises:
        RunError: the head is not reached, or Ray does not run there.
    """
    token = head.run("cat ~/.ray/auth_token 2>/dev/null || true", seconds=_TOKEN).strip()
    with head.tunnel(_PORT) as port:
        from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 (a second)

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # tells of every connection's end
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            client = JobSubmissionClient(f"http://127.0.0.1:{port}", headers=headers)
        except (RuntimeError, OSError) as error:
            raise RunError(
                f"Ray does not run on {at}, or not as `ray up` starts it. Start it with `ray up`."
            ) from error
        yield Jobs(client, at)
