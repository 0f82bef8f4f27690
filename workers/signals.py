"""What a signal does to a worker's process."""

from __future__ import annotations

import ctypes
import signal

_DEFAULT = 0  # a C library's SIG_DFL


def die_of_sigterm() -> None:
    """Gives SIGTERM its default action, from whichever thread: the process is gone at once, and everybody notices.

    Ray's own handler only takes the worker out of the cluster. The threads of its calls train on, and nobody can reach
    them any more. Python's ``signal`` would set a handler in the main thread alone, where no actor is made.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(int(signal.SIGTERM), _DEFAULT)
