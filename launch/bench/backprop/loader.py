"""The process that reads, shuffles and batches a run's images in the background."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch.bench.backprop.batches import portion_of
from launch.bench.backprop.final_messages import print_into
from launch.bench.backprop.job import Job
from pipeline.config import build


def read(job: Job, queues: Sequence[Any], said: str) -> NoReturn:
    """The loader's process: every epoch's batches, each rank's portion into its queue, until it is killed.

    Args:
        said: file for what libraries print.
    """
    print_into(said)
    dataset = build.open_folder(job.spec.settings, Path(job.spec.data_folder))
    for epoch in itertools.count():
        for batch in dataset.batches("train", epoch=epoch, batch_size=job.batch_size):
            for rank, queue in enumerate(queues):
                queue.put(portion_of(job, rank, batch, epoch))
    raise AssertionError("epochs have no end")
