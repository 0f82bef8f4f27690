"""The processes of a run by backprop from outside: started, asked, watched, ended."""

from __future__ import annotations

import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.multiprocessing

from launch.bench.backprop import loader, rank
from launch.bench.backprop.batches import PortionsFromLoader, in_memory
from launch.bench.backprop.final_messages import kind_of
from launch.bench.backprop.job import Job
from launch.bench.protocol import CannotRunError
from pipeline.data.loader import Dataset
from pipeline.errors import StageFailedError
from pipeline.spawn import Child, ChildDiedError, ChildFailedError, ready

# Every process is forked from one that has imported what all need: that takes five seconds of a core, once. What they
# measure is their own, as nothing has run in that one.
_FORKED = torch.multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload([rank.__name__, loader.__name__, "torch._dynamo"])  # the last: every optimizer's import
_AHEAD = 2  # batches that the loader reads ahead of each rank, as a DataLoader's worker does
_AFTERSHOCK = 1.0  # seconds in which the others may say, or show, what went wrong first
_LAST_WORDS = 400  # characters of what a process printed last


@dataclass
class _Member:
    """A process of the group: what people call it, itself, and the file that it prints into."""

    name: str
    child: Child[rank.Question, Any]
    said: Path


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a member; ``kind`` is one of ``_CAUSES``."""

    member: str
    kind: str
    text: str


# A rank that loses another one fails as well: of several failures the first of these is the cause.
_CAUSES = ("killed", "memory", "cannot", "died", "failed")


class WorkerGroup:
    """The processes of one run: a rank each, and a loader where batches are read in the background.

    Args:
        title: the run's, for messages.
        dataset: where the batches in memory come from; None: the loader reads them from the job's data folder.

    Raises:
        CannotRunError: there is no memory for this batch, or this net cannot be trained this way.
        StageFailedError: a process failed or died.
    """

    def __init__(self, title: str, name: str, job: Job, dataset: Dataset | None) -> None:
        self._title, self._job = title, job
        self._folder = tempfile.TemporaryDirectory(prefix="localpipe-bench-")
        self._members: list[_Member] = []
        self._queues: list[Any] = []  # kept: a process that starts opens them by names that end with them
        try:
            self._start(name, dataset)
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, dataset: Dataset | None) -> None:
        job, store = self._job, Path(self._folder.name, "store")  # no other user reaches the folder
        if dataset is not None:
            sources = in_memory(job, dataset)
        else:
            self._queues = [_FORKED.Queue(maxsize=_AHEAD) for _ in range(job.num_ranks)]
            sources = [PortionsFromLoader(queue) for queue in self._queues]
        for number in range(job.num_ranks):
            self._begin(job.rank_name(number), f"{name} rank {number + 1}", rank.work, number, store, sources[number])
        if dataset is None:
            self._begin("the loader", f"{name} loader", loader.read, self._queues)

    def _begin(self, name: str, process_name: str, make: Any, *arguments: Any) -> None:
        said = Path(self._folder.name, f"{len(self._members)}.txt")
        child: Child[rank.Question, Any] = Child(process_name, make, self._job, *arguments, str(said), context=_FORKED)
        self._members.append(_Member(name, child, said))

    def ask(self, *question: Any) -> list[Any]:
        """Every rank's answer. The ranks work on it at once.

        Raises:
            CannotRunError: there is no memory for this batch, or this net cannot be trained this way.
            StageFailedError: a process failed or died. Every process has ended then.
        """
        assert self._members, "it has not ended"
        for member in self._ranks:
            member.child.send(question)
        return self._hear()

    @property
    def _ranks(self) -> list[_Member]:
        return self._members[: self._job.num_ranks]

    def _hear(self) -> list[Any]:
        """An answer of every rank. Raises, with every process ended, where one fails or dies first."""
        answers: dict[str, Any] = {}
        failures: list[_Failure] = []
        while len(answers) < self._job.num_ranks and not failures:
            self._listen(answers, failures, timeout=None)
        if failures:
            end = time.monotonic() + _AFTERSHOCK
            while (left := end - time.monotonic()) > 0 and len(failures) < len(self._members):
                self._listen(answers, failures, timeout=left)
            self.close()
            raise self._error(min(failures, key=lambda failure: _CAUSES.index(failure.kind)))
        return [answers[member.name] for member in self._ranks]

    def _listen(self, answers: dict[str, Any], failures: list[_Failure], timeout: float | None) -> None:
        """Waits for the next words or deaths and adds them to the answers and the failures, in order."""
        fallen = {failure.member for failure in failures}
        members = {member.child: member for member in self._members if member.name not in fallen}
        for child in ready(members, timeout):
            member = members[child]
            try:
                answers[member.name] = child.receive()
            except ChildDiedError as death:
                failures.append(_death(member, death))
            except ChildFailedError as failure:
                failures.append(_Failure(member.name, kind_of(failure.error), failure.said))

    def _error(self, failure: _Failure) -> Exception:
        what = f"{self._title}: {failure.member} {failure.text}"
        if failure.kind in ("killed", "memory"):
            return CannotRunError(f"{what} {self._job.tried}; a smaller --batch-size or --precision bf16 would help.")
        if failure.kind == "cannot":
            return CannotRunError(failure.text)
        return StageFailedError(what)

    def close(self) -> None:
        """Ends every process, at once: none holds anything that is to be kept."""
        for member in self._members:
            member.child.close()
        self._members.clear()
        self._queues.clear()
        self._folder.cleanup()


def _death(member: _Member, death: ChildDiedError) -> _Failure:
    if death.exit_status == -signal.SIGKILL:
        return _Failure(member.name, "killed", "was killed, as Linux does with a process when memory runs out.")
    last = member.said.read_text(errors="replace")[-_LAST_WORDS:].strip() if member.said.exists() else ""
    return _Failure(member.name, "died", f"ended {death.how}. It last printed: {last or 'nothing'}")
