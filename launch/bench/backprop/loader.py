"""The process that reads, shuffles and batches a run's images in the background."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from launch.bench.backprop.batches import portion_of
from launch.bench.backprop.final_messages import keep_quiet, kind_of
from launch.bench.backprop.job import Job
from pipeline.config import build


def read(job: Job, queues: Sequence[Any], line: Connection, said: str) -> None:
    """The loader's process: every epoch's batches, each rank's portion into its queue, until it is killed.

    Args:
        line: tells of a failure.
        said: file for what libraries print.
    """
    keep_quiet(said)
    try:
        dataset = build.open_folder(job.spec.settings, Path(job.spec.data_folder))
        for epoch in itertools.count():
            for batch in dataset.batches("train", epoch=epoch, batch_size=job.batch_size):
                for rank, queue in enumerate(queues):
                    queue.put(portion_of(job, rank, batch, epoch))
    except Exception as error:  # noqa: BLE001 - whatever it was, whoever waits for batches is to hear it
        line.send((kind_of(error), f"{type(error).__name__}: {error}"))
