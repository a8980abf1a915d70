"""Signals that ask a run to save and leave: SIGTERM, Ctrl-C, and SIGUSR1 as schedulers send it before the end."""

import os
import signal
import socket
import threading
import time

ONE_REQUEST = 3.0  # seconds within which several signals are one request: launchers pass on what ranks got already
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers the first signal; a second one, later, ends the process at once.

    A thread hears them, because Python's own handlers wait as long as the main thread is in a collective.
    """

    def __init__(self) -> None:
        """Take over the signals; in the main thread only."""
        self.name: str | None = None
        self._ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        signal.set_wakeup_fd(mouth.detach())
        heard = [number for number in NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup has it ignored
        for number in heard:
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def __bool__(self) -> bool:
        return self.name is not None

    def _listen(self) -> None:
        asked = 0.0
        while number := self._ear.recv(1):
            if number[0] not in NUMBERS:
                continue
            if self.name is None:
                self.name, asked = signal.Signals(number[0]).name, time.monotonic()
            elif time.monotonic() - asked > ONE_REQUEST:
                os._exit(128 + number[0])
