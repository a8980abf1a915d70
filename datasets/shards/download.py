"""The bytes of files that lie elsewhere: what opens a place, for how long it is waited for, and that it ends with us."""

import io
import os
import select
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from webdataset.gopen import gopen

from alliance.passwords import hide_passwords
from datasets.children import Guarded, guard, start
from datasets.descriptors import FULL, too_many

SLOWEST = 1000.0  # bytes a second; what comes more slowly stalls
T = TypeVar("T")


class Download(io.RawIOBase):
    """The bytes of a file, by webdataset's opener or a command; both end with this process.

    What went wrong stands in `failure`, but for too many open files. `stalled`: nothing came for too long, or too slowly.
    """

    def __init__(self, address: str, limit: int, timeout: float, stop: threading.Event | None = None) -> None:
        self.failure, self.stalled, self._left, self._stop = "", False, limit, stop or threading.Event()
        self._timeout = self._patience = timeout
        self._opener: Guarded | None = None
        self._poll = select.poll()
        try:
            if address.startswith("pipe:"):
                command = address.removeprefix("pipe:")
                self._opener = start(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
                self._file: Any = self._opener.process.stdout
            else:
                self._pipe: Any = gopen(address)  # held, because it closes its file when it goes
                self._opener, self._file = guard(self._pipe.proc), self._pipe.stream
            self._poll.register(self._file, select.POLLIN)
        except Exception as error:  # of another kind for each scheme
            if isinstance(error, OSError) and error.errno in FULL:
                raise too_many(error) from error
            self.failure = hide_passwords(" ".join(str(error).split()))[:200]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """As of any raw stream; it also ends at the limit, after a failure and when told to stop."""
        while not self.failure and not self._stop.is_set():
            if self._await(lambda: bool(self._poll.poll(100))):  # milliseconds
                count = os.readv(self._file.fileno(), [memoryview(buffer)[: self._left]])
                self._left -= count
                self._patience = min(self._timeout, self._patience + count / SLOWEST)
                if not count and self._left:
                    self._ended()
                return count
        return 0

    def _ended(self) -> None:
        """See that the opener ends well; one that has closed its output may still run."""
        process = self._opener.process if self._opener else None
        while process and process.poll() is None and not self.failure and not self._stop.is_set():
            self._await(lambda: time.sleep(0.01))
        if process and process.returncode:
            self.failure = f"its opener ended with status {process.returncode}"

    def _await(self, turn: Callable[[], T]) -> T:
        """Wait a turn, and give up when patience is at its end."""
        begun = time.monotonic()
        result = turn()
        self._patience -= time.monotonic() - begun
        if self._patience < 0:
            self.stalled = True
            rate = f"not even {SLOWEST:,.0f} bytes a second"
            self.failure = f"nothing came, or {rate}, for {self._timeout:g} s (data.timeout)"
        return result

    def close(self) -> None:
        """End the opener's command, however far it is."""
        super().close()
        if self._opener:
            self._file.close()
            self._opener.end()


def address_of(place: str, name: str) -> str:
    """What webdataset's opener takes for a file under a place."""
    if place.startswith("pipe:"):
        return place.replace("{}", shlex.quote(name))
    address = f"{place.rstrip('/')}/{name}"
    return f"pipe:aws s3 cp {shlex.quote(address)} -" if place.startswith("s3:") else address
