"""Signals that ask a run to save and leave: SIGTERM, and SIGUSR1 as schedulers send it some time before the end."""

import os
import signal
import time
from types import FrameType

ONE_REQUEST = 3.0  # seconds within which several signals are one request: launchers pass on what ranks got already


class StopRequest:
    """Remembers the first signal; a second one, later, ends the process at once."""

    def __init__(self) -> None:
        """Take over the signals; in the main thread only."""
        self.name: str | None = None
        self._at = 0.0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def __bool__(self) -> bool:
        return self.name is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name, self._at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._at > ONE_REQUEST:
            os._exit(128 + number)
