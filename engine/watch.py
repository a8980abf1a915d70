"""Ranks that keep an eye on each other: one that fails, dies or stops ends the others within a minute, and is named."""

import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed import distributed_c10d

from alliance.errors import InputError
from engine.errors import AgreedError

logger = logging.getLogger("alliance")

BEAT = 2.0  # seconds between two signs of life
SILENCE = 25.0  # seconds without one after which a rank counts as lost
DOUBT = 6.0  # the same when a collective has failed
LINGER = 1.0  # seconds that a rank stays after an agreement, so that the others can finish the collective that made it
TELLERS = 3  # ranks that say what happened; the others leave quietly
FAILURE = "watch/failure"
TOLD = "watch/told"
NO_STORE = "stopped: rank 0 has died or cannot be reached. Go on with --run.resume auto"


class Watch:
    """Tells the group's store how far this rank is, and notices when another one stops telling.

    The main rank hears all ranks, the others hear the main rank: a few small messages per rank and beat.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Every rank of the group must make one."""
        self.rank, self.size = rank, size
        self.step: int | None = None  # the loop sets it
        self._over = threading.Event()  # this rank's own part is done, well or badly
        self._closed = threading.Event()  # the whole work is
        self._answered = time.monotonic()  # when the store last did
        if size > 1:
            self._store = distributed_c10d.PrefixStore(
                _agree_on_a_secret(rank), distributed_c10d._get_default_store().clone()
            )
            self._beat(0)
            dist.barrier()  # from here on every rank has given a sign
            for task in (self._run, self._await_store):
                threading.Thread(target=task, name="watch", daemon=True).start()

    def close(self) -> None:
        """The work is done: what happens to other ranks does not matter any more."""
        self._over.set()
        self._closed.set()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """When this rank fails, tell the others why; when it fails because another one did, say which, and exit."""
        try:
            yield
        except AgreedError:
            self.close()
            time.sleep(LINGER if self.size > 1 else 0)
            raise
        except Exception as error:
            if self.size == 1 or self._over.is_set():
                raise
            lines = str(error).strip().splitlines() or [""]
            text = lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[0]}"
            if self._blame(text, collective_failed=isinstance(error, RuntimeError)):
                raise
            sys.exit(1)

    def _blame(self, text: str, *, collective_failed: bool) -> bool:
        """Whether the failure began here. That of a collective may have begun anywhere, so the others are heard."""
        self._over.set()
        self._answered = time.monotonic()
        try:
            other = self._find_lost() if collective_failed else None
            own = f"rank {self.rank} (host {socket.gethostname()}) failed {self._place()}: {text}"
            self._store.set(FAILURE, other or own)
            if other:
                self._tell(other)
            if self.rank == 0:  # the store goes with this process: let the others read it first
                time.sleep(BEAT + 1)
            return other is None
        except dist.DistError:
            logger.error(NO_STORE)
        return False

    def _find_lost(self) -> str | None:
        """Who failed, seen from a rank whose collective did; None when all others are alive."""
        everyone = list(range(self.size))
        before, number, until = self._store.multi_get(_names(everyone)), -1, time.monotonic() + DOUBT
        while time.monotonic() < until:
            if self._store.check([FAILURE]):
                return self._store.get(FAILURE).decode()
            self._beat(number)
            number -= 1
            time.sleep(BEAT / 2)
        after = self._store.multi_get(_names(everyone))
        silent = [rank for rank in everyone if rank != self.rank and after[rank] == before[rank]]
        return self._describe(silent, DOUBT) if silent else None

    def _run(self) -> None:
        heard_of = list(range(self.size)) if self.rank == 0 else [0]
        last = {rank: (b"", time.monotonic()) for rank in heard_of}
        number, text = 1, None
        while text is None and not self._over.wait(BEAT):
            if time.monotonic() - self._answered > SILENCE / 2:  # this process was suspended, perhaps with all others
                last = {rank: (beat, time.monotonic()) for rank, (beat, _) in last.items()}
            try:
                self._beat(number)
                number += 1
                if self._store.check([FAILURE]):
                    text = self._store.get(FAILURE).decode()
                self._answered = now = time.monotonic()
                for rank, beat in zip(heard_of, self._store.multi_get(_names(heard_of)), strict=True):
                    last[rank] = last[rank] if last[rank][0] == beat else (beat, now)
                silent = [rank for rank, (_, heard) in last.items() if now - heard > SILENCE]
                if silent and text is None:
                    text = self._describe(silent, SILENCE)
                    self._store.set(FAILURE, text)
            except dist.DistError:
                if not self._over.wait(DOUBT):
                    logger.error(NO_STORE)
                    os._exit(1)
        if text and not self._over.wait(DOUBT):  # this rank hangs in a collective, else it would have failed by now
            self._tell(text)
            os._exit(1)

    def _await_store(self) -> None:
        """End this rank when a question to the store hangs, as it does when the cable is cut."""
        turn = time.monotonic()
        while not self._closed.wait(BEAT):
            before, turn = turn, time.monotonic()
            if turn - before > SILENCE / 2:  # this process was suspended
                self._answered = turn
            if turn - self._answered > SILENCE:
                logger.error(NO_STORE)
                os._exit(1)

    def _beat(self, number: int) -> None:
        self._store.set(f"watch/{self.rank}", f"{number} {os.getpid()} {socket.gethostname()}")

    def _describe(self, silent: Sequence[int], seconds: float) -> str:
        said = []
        for rank, beat in zip(silent, self._store.multi_get(_names(silent[:TELLERS])), strict=False):
            _, process, host = beat.decode().split(maxsplit=2)
            said.append(f"rank {rank} (host {host}, process {process})")
        more = f" and {len(silent) - len(said)} more" * (len(silent) > len(said))
        return f"{', '.join(said)}{more} died or stopped {self._place()}: not a word for {seconds:.0f} s"

    def _place(self) -> str:
        return "before the first step" if self.step is None else f"at step {self.step}"

    def _tell(self, text: str) -> None:
        if self._store.add(TOLD, 1) <= TELLERS:
            logger.error("stopped: %s. Go on with --run.resume auto", text)


def _agree_on_a_secret(rank: int) -> str:
    """What the names of all messages begin with, so that nobody else can leave one; told past the store."""
    box = [secrets.token_hex(16) if rank == 0 else ""]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _names(ranks: Sequence[int]) -> list[str]:
    return [f"watch/{rank}" for rank in ranks]
