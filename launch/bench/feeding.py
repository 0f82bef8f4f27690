"""How fast a feeder is when nobody holds it back."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace

import torch

from pipeline.config import build
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.kind import Kind
from pipeline.runtime.feeder import messages
from pipeline.runtime.passes import Pass
from pipeline.transport.message import HEADER_BYTES, message_bytes, pack

_SECONDS = 1.0
_LARGE = 64 << 20  # bytes of images: more than the caches of a core hold


@dataclass(frozen=True, kw_only=True)
class FeederSpeed:
    """Images per second of one feeder, on one thread.

    Attributes:
        first: in its first epoch, when it decodes them.
        later: out of its memory.
    """

    first: float
    later: float


def feeder_speed(settings: Settings, dataset: Dataset, seconds: float = _SECONDS) -> FeederSpeed:
    """Reads, shuffles, batches and packs for so long, from a part of the training images that fits no cache."""
    batch = settings.train.batch_size
    count = dataset.count("train")
    wanted = max(2 * batch, _LARGE // math.prod(dataset.index.shape))
    fraction = settings.data.train_fraction * min(1.0, wanted / count)
    source = build.open_folder(replace(settings, data=replace(settings.data, train_fraction=fraction)), dataset.folder)
    endless = (Pass(Kind.TRAIN, epoch) for epoch in itertools.count())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    header, payload = torch.zeros(HEADER_BYTES, dtype=torch.uint8), torch.zeros(0, dtype=torch.uint8)
    try:
        begun, images, first = time.perf_counter(), 0, 0.0
        for sequence, message in enumerate(messages(source, endless, batch_size=batch)):
            if not len(payload):
                payload = torch.zeros(message_bytes(message), dtype=torch.uint8)
            pack(message, header, payload, sequence)
            images += batch
            spent = time.perf_counter() - begun
            if message.epoch == 0 and message.last:
                first, begun, images = images / spent, time.perf_counter(), 0
            elif message.epoch > 0 and spent >= seconds:
                return FeederSpeed(first=first, later=images / spent)
    finally:
        torch.set_num_threads(threads)
    raise AssertionError("the passes have no end")
