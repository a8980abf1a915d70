"""How the ranks of a run find each other: at one store, with a word about whom is waited for, and an end of the waiting."""

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from alliance.errors import InputError

logger = logging.getLogger("alliance")

TELL = 30.0  # seconds after which a rank says for whom it waits
TURN = 0.2  # seconds between two looks
NAMED = 8  # ranks that are named
COUNT, HERE = "meeting/count", "meeting/{}"


class Meeting:
    """The place and the time of a meeting, as one rank sees them."""

    def __init__(self, address: str, port: int, size: int, timeout: float, tell: float = TELL) -> None:
        """
        Args:
            address, port: of rank 0, as the others reach it.
            timeout: seconds that a rank waits for the others.
            tell: seconds after which it says so.
        """
        self.address, self.port, self.size, self.timeout = address, port, size, timeout
        self._begun, self._tell = time.monotonic(), tell
        self._where = f"{address}:{port} (MASTER_ADDR, MASTER_PORT)"

    def host(self, *, loopback: bool) -> Store:
        """The store, on rank 0, once all ranks are there.

        Args:
            loopback: whether it listens to this machine alone; torch's own would listen on all addresses.
        Raises:
            InputError: the port is taken, or ranks are missing at the end of the time.
        """
        listener = self._listen(loopback)
        store = TCPStore(
            "127.0.0.1", self.port, self.size, True, timedelta(seconds=self.timeout), wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )  # fmt: skip
        self._await_all(store, 0)
        return store

    def join(self, rank: int) -> Store:
        """The store, on another rank, once all ranks are there.

        Raises:
            InputError: rank 0 cannot be reached, or ranks are missing, at the end of the time.
        """
        while reason := self._reach():
            self._wait([0], reason)
        try:
            store = self._connected()
            store.set_timeout(timedelta(seconds=self.timeout))
            self._await_all(store, rank)
        except (dist.DistError, TimeoutError) as error:
            said = (str(error).strip().splitlines() or ["no answer"])[0]
            raise InputError(
                f"what answers at {self._where} is no rank 0 of this run, or has gone ({said}); see what rank 0 says, or "
                f"give another MASTER_PORT"
            ) from error
        return store

    def _connected(self) -> Store:
        """The store of rank 0. Torch waits without end for a stranger's answer, so a thread does that, which may stay."""
        left = max(self.timeout - (time.monotonic() - self._begun), 1)
        made: Future[Store] = Future()

        def connect() -> None:
            limit = timedelta(seconds=left)
            try:
                made.set_result(TCPStore(self.address, self.port, self.size, False, limit, wait_for_workers=False))
            except dist.DistError as error:
                made.set_exception(error)

        threading.Thread(target=connect, daemon=True, name="meeting").start()
        return made.result(left)

    def _listen(self, loopback: bool) -> socket.socket:
        dual = not loopback and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        try:
            return socket.create_server(
                ("127.0.0.1" if loopback else "", self.port), family=family, dualstack_ipv6=dual, backlog=self.size
            )
        except OSError as error:
            where = "127.0.0.1" if loopback else "this machine"
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(
                f"port {self.port} of {where}, where the ranks meet, is taken ({reason}); set MASTER_PORT to a free one"
            ) from error

    def _reach(self) -> str | None:
        """Why rank 0 cannot be reached; None: somebody answers there."""
        try:
            socket.create_connection((self.address, self.port), timeout=min(self.timeout, 5)).close()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _await_all(self, store: Store, rank: int) -> None:
        store.set(HERE.format(rank), "")
        store.add(COUNT, 1)
        while store.add(COUNT, 0) < self.size:
            late = self._is_late()
            missing = [other for other in range(self.size) if late and not store.check([HERE.format(other)])]
            self._wait(missing, "", tells=rank == 0)

    def _is_late(self) -> bool:
        waited = time.monotonic() - self._begun
        return waited > min(self.timeout, self._tell)

    def _wait(self, missing: Sequence[int], reason: str, *, tells: bool = True) -> None:
        """Wait a turn; say for whom when it is time, and give up at the end."""
        waited = time.monotonic() - self._begun
        why = f": {reason}" if reason else ""
        if waited > self.timeout and missing:
            raise InputError(
                f"{self._named(missing)} did not come to {self._where} within {self.timeout:g} s{why}; start "
                f"{'it' if len(missing) == 1 else 'them'} with this address and port, correct WORLD_SIZE ({self.size}), or "
                f"wait longer with --engine.timeout"
            )
        if waited > self._tell:
            self._tell = float("inf")
            if tells:
                logger.warning("waits for %d of %d ranks (%s) at %s%s; for %g s at most", len(missing), self.size,
                               self._named(missing), self._where, why, self.timeout)  # fmt: skip
        time.sleep(TURN)

    @staticmethod
    def _named(ranks: Sequence[int]) -> str:
        more = f" and {len(ranks) - NAMED} more" * (len(ranks) > NAMED)
        return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:NAMED]))}{more}"
