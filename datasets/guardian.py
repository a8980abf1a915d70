"""A program: ends processes when the one that started it is gone, however it went. `datasets.children` starts it.

Its standard input is a pipe that the parent alone holds. A line `+N` names a process, or with `+-N` a process group, that is
to be killed when the pipe ends; `!N` takes it back.
"""

import os
import signal
import sys


def main() -> None:
    """Listen until the parent is gone, then kill."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched = set()
    for line in sys.stdin:
        if line.startswith("+"):
            watched.add(int(line[1:]))
        else:
            watched.discard(int(line[1:]))
    for target in watched:
        try:
            os.kill(target, signal.SIGKILL)
        except OSError:  # it has ended
            continue


if __name__ == "__main__":
    main()
