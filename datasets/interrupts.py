"""Ctrl-C while a command is being loaded. Imports nothing that takes time, for it is loaded first."""

import os
import signal
from types import FrameType

INTERRUPTED = 130  # exit code after Ctrl-C, as of a shell


def end_at_once() -> None:
    """Until the command takes over, let Ctrl-C end this process without a traceback: nothing has been written yet.

    Libraries that are being imported swallow a KeyboardInterrupt, or turn it into an ImportError. Where Ctrl-C is
    ignored, as under nohup, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, b"stopped before anything was done\n")
    os._exit(INTERRUPTED)
