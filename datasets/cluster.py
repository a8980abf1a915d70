"""Work of a command done by the workers of a running Dask cluster, which see the same files under the same paths.

The scheduler needs none of our packages: what it passes on is bytes. A worker's process does one unit at a time, after it has
seen that it runs the same code with the same libraries as the command.
"""

import hashlib
import importlib
import importlib.metadata
import logging
import pickle
import re
import socket
import sys
import threading
import time
import warnings
from asyncio import CancelledError as Stopped
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from alliance.errors import InputError
from datasets.commands import KNOWN, explain
from datasets.contents import ABSENT, Stamp, stamp, stamps

ADDRESS = re.compile(r"(?:tcp|tls|wss?)://(?:\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]]+):\d{1,5}/?")
TIMEOUT = 10.0  # seconds until a scheduler that does not answer is given up
PATIENCE = 60.0  # seconds that work waits for a worker where there is none
LOOK = 1.0  # seconds from one look at the workers to the next
POLL = 0.01  # seconds between looks at what is done
AHEAD = 3  # units per thread of the workers that are under way
RETRIES = 2  # of a unit that the system failed; a worker that dies is the scheduler's to count
CLOCKS = 2 * 10**9  # ns by which machines may differ on the time of a file
ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("alliance", "datasets", "engine", "finetune")
LIBRARIES = ("numpy", "torch", "rasterio", "h5py", "scipy", "webdataset")  # that decide what is written
IN_THE_CLONE = "PYTHONPATH=CLONE python -m distributed.cli.dask_worker ADDRESS --nthreads 1"
SAME = "give all of them one environment, then start the scheduler and the workers again"
UNREACHED = (OSError, ValueError, TypeError, RuntimeError, ImportError)  # what a client's start raises
GONE = (OSError, RuntimeError, CancelledError, Stopped)  # what requests raise when the scheduler is
Unit = TypeVar("Unit")
Found = TypeVar("Found")

_one_at_a_time = threading.Lock()


class Refusal(NamedTuple):
    """What a worker gives where a unit cannot be done, and another try would change nothing."""

    where: str
    reason: str


class Cluster:
    """The workers behind a scheduler, see `connected`."""

    def __init__(self, client: Any, address: str, patience: float = PATIENCE) -> None:
        self.client, self.address, self.patience = client, address, patience
        self._function, self._here = _sent_by_value(), surroundings()
        self._threads, self._looked, self._seen = 0, -LOOK, time.monotonic()

    def run(
        self, work: Callable[[Unit], Found], units: Iterable[Unit], *, in_order: bool = False
    ) -> Iterator[tuple[Unit, Found]]:
        """Do all units, and give each with its result when it is done, or in their order; a few per worker are under way.

        A unit whose worker dies is done again by another, as often as the scheduler allows (3 times, unless it is told otherwise).

        Args:
            work, units: picklable; `str` of a unit names it.
        Raises:
            InputError: a unit cannot be done, by which worker and why; no workers; or the scheduler is gone.
        """
        left, waiting = iter(units), dict[Any, Unit]()
        self._seen = time.monotonic()
        while True:
            self._look()
            for unit in islice(left, max(AHEAD * self._threads - len(waiting), 0 if waiting else 1)):
                waiting[self._submit(work, unit)] = unit
            if not waiting:
                return
            future = self._await(waiting, in_order=in_order)
            unit = waiting.pop(future)
            yield unit, self._result(future, unit)

    def _submit(self, work: Callable[[Unit], Any], unit: Unit) -> Any:
        payload = pickle.dumps((work, unit))
        key = f"{unit} {uuid4().hex}"
        return self.client.submit(self._function, self._here, payload, key=key, pure=False, retries=RETRIES)

    def _await(self, waiting: Mapping[Any, Any], *, in_order: bool) -> Any:
        """The next one that is done.

        Raises:
            InputError: there was no worker for too long.
        """
        while True:
            for future in islice(waiting, 1 if in_order else None):
                if future.done():
                    return future
            time.sleep(POLL)
            self._look()
            if time.monotonic() - self._seen > self.patience:
                raise InputError(
                    f"the scheduler at {self.address} has had no worker for {self.patience:.0f} s; start some, such as "
                    f"{IN_THE_CLONE.replace('ADDRESS', self.address)}, then give the same command again"
                )

    def _look(self) -> None:
        """Count the threads of the workers, now and then."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        try:
            self._threads = sum(self.client.nthreads().values())
        except GONE as error:
            raise self._gone() from error
        self._looked = time.monotonic()
        if self._threads:
            self._seen = self._looked

    def _result(self, future: Any, unit: Any) -> Any:
        killed = _distributed().scheduler.KilledWorker
        try:
            found = future.result()
        except killed as error:
            raise InputError(
                f"{unit}: {error.allowed_failures + 1} workers died while they were at it, the last one was {error.last_worker.address}; "
                f"for memory perhaps: see their logs, raise --memory-limit of the workers, or take smaller pieces"
            ) from error
        except (CancelledError, Stopped) as error:
            raise self._gone() from error
        except ImportError as error:
            raise InputError(
                f"{unit}: a worker does not find the packages of this clone ({error}); start the workers so that they do: "
                f"{IN_THE_CLONE.replace('ADDRESS', self.address)}"
            ) from error
        except OSError as error:
            raise InputError(f"{unit}, {RETRIES + 1} times: {error}") from error
        if isinstance(found, Refusal):
            raise InputError(f"{unit}, {found.where}: {found.reason}")
        return found

    def _gone(self) -> InputError:
        return InputError(
            f"the scheduler at {self.address} is gone; start it and its workers again, then give the same command again"
        )


@contextmanager
def connected(address: str, *, timeout: float = TIMEOUT, patience: float = PATIENCE) -> Iterator[Cluster]:
    """The cluster of a scheduler, until the block ends.

    Args:
        timeout: seconds in which it must answer.
        patience: seconds that work waits for a worker where there is none.
    Raises:
        InputError: `distributed` is not installed, no address of a scheduler, nobody answers there, or other versions.
    """
    if not ADDRESS.fullmatch(address):
        raise InputError(f"--dask {address!r}: give the address of a running scheduler, such as tcp://10.0.0.1:8786")
    distributed = _distributed()
    try:
        client = _within(timeout, partial(distributed.Client, address, timeout=timeout, set_as_default=False))
    except UNREACHED as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"no Dask scheduler answers at {address} within {timeout:.0f} s ({reason}); start one with python -m "
            f"distributed.cli.dask_scheduler, or correct --dask"
        ) from error
    try:
        refuse_other_versions(_told_versions(client))
        yield Cluster(client, address, patience)
    finally:
        client.close(timeout=timeout)


def _within(seconds: float, make: Callable[[], Found]) -> Found:
    """What a call gives, if it does so in time: one that never ends is left behind.

    Raises:
        TimeoutError: it does not.
    """
    given: Future[Found] = Future()

    def work() -> None:
        try:
            given.set_result(make())
        except UNREACHED as error:
            given.set_exception(error)

    threading.Thread(target=work, daemon=True, name="connecting").start()
    return given.result(seconds + 1)  # it has a limit of its own, which does not hold everywhere


def _distributed() -> Any:
    """The package distributed, which says nothing of its own.

    Raises:
        InputError: it is not installed.
    """
    try:
        found = importlib.import_module("distributed")
    except ImportError as error:
        raise InputError(
            f"--dask needs the packages dask and distributed ({error}): pip install '.[cluster]', or leave --dask out"
        ) from error
    for name in ("distributed", "distributed.client", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told once, by us
    warnings.filterwarnings("ignore", category=found.versions.VersionMismatchWarning)  # told as a refusal
    return found


def _told_versions(client: Any) -> Mapping[str, Any]:
    try:
        return client.get_versions()
    except GONE as error:
        raise InputError(f"the scheduler does not tell its versions ({error}); see its log") from error


def refuse_other_versions(told: Mapping[str, Any]) -> None:
    """Refuse a scheduler and workers that another Python runs: functions do not pass from one to another.

    Args:
        told: by Dask: packages of the client, the scheduler and the workers.
    Raises:
        InputError: one does, by its address.
    """
    ours = told["client"]["packages"]
    for where, found in (("the scheduler", told["scheduler"]), *told["workers"].items()):
        for name in ("python", "distributed"):
            mine, theirs = (_release(packages.get(name)) for packages in (ours, found["packages"]))
            if mine != theirs:
                raise InputError(f"{where} has {name} {theirs}, this command {mine}; {SAME}")


def _release(version: Any) -> str:
    """Of a version the part that must be the same: 3.12 of 3.12.4.final.0, 2026.8 of 2026.8.0."""
    return ".".join(str(version).split(".")[:2])


def surroundings() -> dict[str, str]:
    """What must be the same of a command and its workers: Python, libraries and our code, each with its version."""
    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"code of this project": _code()}


@cache
def _code() -> str:
    """A checksum of our code, as it was when this process first asked."""
    total = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        total.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def _sent_by_value() -> Callable[[dict[str, str], bytes], Any]:
    """The function that a worker calls. It is defined inside another so that it travels as it is, not as a name of our package."""

    def do(surroundings: dict[str, str], payload: bytes) -> Any:
        import importlib
        import socket

        try:
            ours = importlib.import_module("datasets.cluster")
        except ImportError as error:
            raise ImportError(f"{socket.gethostname()}: {error}") from None
        return ours.do_unit(surroundings, payload)

    return do


def do_unit(expected: Mapping[str, str], payload: bytes) -> Any:
    """Do a unit in a worker's process.

    Args:
        expected: `surroundings` of the command.
        payload: the work and the unit.
    Returns:
        What the work gives, or a Refusal.
    Raises:
        OSError: the system failed; the same may go well another time.
    """
    where = f"worker {_distributed().get_worker().address} on {socket.gethostname()}"
    with _one_at_a_time:
        try:
            refuse_other_surroundings(expected)
            work, unit = pickle.loads(payload)  # noqa: TID251 - of the command, as all that Dask passes on
            return work(unit)
        except InputError as error:
            return Refusal(where, str(error))
        except ImportError as error:
            return Refusal(where, f"{error}; install what it lacks, then start it again")
        except KNOWN as error:
            raise OSError(f"{where}: {explain(error)}") from error


def refuse_other_surroundings(expected: Mapping[str, str]) -> None:
    """See that this process is like that of the command.

    Raises:
        InputError: it is not.
    """
    found = surroundings()
    for name, version in expected.items():
        if found[name] != version:
            raise InputError(f"it has {name} {found[name]}, the command {version}; {SAME}")


def stamped(files: Iterable[Path]) -> dict[Path, Stamp]:
    """Files, and what belongs to them, with absolute paths and their stamps as this machine sees them."""
    return {path: each for file in dict.fromkeys(files) for path, each in stamps(file.absolute()).items()}


def refuse_unseen(expected: Mapping[Path, Stamp]) -> None:
    """See that this machine sees the same files as the command.

    Raises:
        InputError: it does not see one, or another one of this name.
    """
    for file, (size, changed) in expected.items():
        found = stamp(file)
        if found == ABSENT and size:
            raise InputError(
                f"{file} is not there, or may not be read; all workers need the same files under the same paths"
            )
        if found.size != size or abs(found.time - changed) > CLOCKS:
            raise InputError(
                f"{file} is another file here: {found.size} bytes of {_when(found.time)}, the command sees {size} bytes of "
                f"{_when(changed)}; all workers need the same files under the same paths"
            )


def _when(changed: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(changed / 1e9))
