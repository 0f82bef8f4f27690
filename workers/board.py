"""Where a run is now, left in the cluster's own store for whoever joins it: a note of some hundred bytes a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ray.exceptions import RpcError
from ray.experimental import internal_kv as store  # what it offers has names that look private

_NAMESPACE = "localpipe"
_EVERY = 1.0  # seconds between two notes of one run


class Board:
    """Keeps a run's note up to date, from a thread of its own: a head that is slow to answer holds nobody up. A
    context manager, at whose end the note is taken off. Ray must be initialised.

    Args:
        name: the run's, that no other run of the cluster has.
        now: gives the note; None: there is none yet.
        outdated: whether a note is left of a run that was killed, and is to be taken off.
    """

    def __init__(self, name: str, now: Callable[[], bytes | None], outdated: Callable[[bytes], bool]) -> None:
        self._name, self._now, self._outdated = name, now, outdated
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(2 * _EVERY)

    def _work(self) -> None:
        try:
            for name, note in notes().items():
                if self._outdated(note):
                    store._internal_kv_del(name, namespace=_NAMESPACE)
            while not self._over.wait(_EVERY):
                if (now := self._now()) is not None:
                    store._internal_kv_put(self._name, now, namespace=_NAMESPACE)
            store._internal_kv_del(self._name, namespace=_NAMESPACE)
        except RpcError:
            return  # the head is gone, and with it the store; the run says so


def notes() -> dict[str, bytes]:
    """The notes of all runs on the cluster that this process has joined, by their names."""
    names = [name.decode() for name in store._internal_kv_list("", namespace=_NAMESPACE)]
    # Its types do not know that a key may have gone meanwhile.
    found: dict[str, bytes | None] = {name: store._internal_kv_get(name, namespace=_NAMESPACE) for name in names}
    return {name: note for name, note in found.items() if note is not None}
