"""What a stage says to the shared state, on its way from a GPU."""

from __future__ import annotations

import queue

import torch

from pipeline.runtime.state_line import Contributions, Said


class Outgoing:
    """What a stage says, in the order in which it said it, until it has come from its device."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Said, torch.cuda.Event | None] | None] = queue.SimpleQueue()

    def put(self, said: Said) -> None:
        copied = None
        if isinstance(said, Contributions) and said.values.is_cuda:
            host = torch.empty(said.values.shape, dtype=said.values.dtype, pin_memory=True)
            host.copy_(said.values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(said.values.device))
            said = said._replace(values=host)
        self._queue.put((said, copied))

    def take(self) -> list[Said]:
        """All that has come meanwhile, once there is something; nothing once it is closed."""
        waiting = [self._queue.get()]
        while not self._queue.empty():
            waiting.append(self._queue.get())
        said: list[Said] = []
        for one in waiting:
            if one is None:
                return []
            if one[1] is not None:
                one[1].synchronize()
            said.append(one[0])
        return said

    def close(self) -> None:
        """What was not taken yet is forgotten."""
        self._queue.put(None)
