"""How fast a feeder is when nobody holds it back."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import torch

from pipeline import resolve
from pipeline.feed import messages
from pipeline.messages import HEADER_BYTES, Kind, pack
from pipeline.shapes import edge_bytes
from pipeline.spec import RunSpec

_SECONDS = 1.0


def feeder_rate(spec: RunSpec, seconds: float = _SECONDS) -> float:
    """Images per second that one feeder reads from memory, shuffles, batches and packs, on one thread.

    Args:
        spec: a run with a short epoch: its first pass, which decodes the images, is not measured.
    """
    source = resolve.open_folder(spec.settings, Path(spec.data_folder))
    header, payload = (torch.zeros(size, dtype=torch.uint8) for size in (HEADER_BYTES, edge_bytes(spec)[0]))
    endless = ((Kind.TRAIN, epoch) for epoch in itertools.count())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        begun, images = 0.0, 0
        for sequence, message in enumerate(messages(source, endless, batch_size=spec.settings.train.batch_size)):
            pack(message, header, payload, sequence)
            if message.epoch > 0:
                images += spec.settings.train.batch_size
                if time.perf_counter() - begun >= seconds:
                    break
            elif message.last:
                begun = time.perf_counter()
        return images / (time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
