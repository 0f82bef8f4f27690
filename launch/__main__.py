"""`python -m launch` is `launch`, and this is where both begin.

Until a command begins to work there is nothing to keep, and what is imported, NumPy and PyTorch among it, may swallow a
KeyboardInterrupt or make another error of it. So a signal that asks the program to stop ends it there and then.
"""

import atexit
import sys

from launch.signals import Ending, hear


def main() -> int:
    """Runs the command line from the process's first to its last moment. Returns the exit status, as ``launch.cli``."""
    ending = Ending()
    atexit.register(ending.leave)  # first, so that it is called last
    hear(ending.stopped)
    from launch.cli import main as run  # noqa: PLC0415 (rich and tyro take a while)

    try:
        ending.status = run()
    except SystemExit as asked:  # by what reads arguments, once it has written its help
        ending.status = asked.code if isinstance(asked.code, int) else 0
        raise
    hear(ending.over)  # what Python and libraries do at a process's end has no use for KeyboardInterrupts
    return ending.status


if __name__ == "__main__":
    sys.exit(main())
