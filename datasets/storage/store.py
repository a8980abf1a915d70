"""A folder in object storage (s3, gs, az, http): whole files and byte ranges, asked again for as long as it may be away."""

import asyncio
import base64
import logging
import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from alliance.errors import InputError
from alliance.passwords import hide_passwords
from datasets.storage.places import TIMEOUT, filled_in

logger = logging.getLogger("alliance")

T = TypeVar("T")
PAUSES = 0.2, 10.0  # seconds before the first try anew, and at most
ATTEMPTS = 2  # at least
METADATA = "169.254.169.254"  # where machines in a cloud ask for the credentials of their role
AT_ONCE = 64  # requests under way in a process
NEAR = 1 << 18  # bytes; ranges that lie nearer to each other are one request
TOLD = 30.0  # seconds between two lines about tries anew
MOST = 1 << 30  # bytes of a file that is read whole
INSTALL = "pip install '.[cloud]'"
_jitter = random.Random()  # the draws of training are others


@dataclass
class Traffic:
    """What was asked of a store since it was opened."""

    requests: int = 0  # ranges that lie near each other are one
    retries: int = 0
    bytes: int = 0


class Entry(NamedTuple):
    """A file of a store, as it was when it was looked up."""

    name: str
    size: int  # bytes
    time: int  # ns, of its last change
    version: str  # another one for another content; empty: the store gives none


class Missing(OSError):
    """There is no such file."""


class Refused(InputError):
    """The store does not let us have a file."""


class NoRanges(Exception):
    """The server gives whole files alone."""


def client() -> ModuleType | None:
    """The library that speaks to stores, where it is installed."""
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        return None
    return obstore


class Store:
    """One folder. Any thread may ask; requests of all are under way at a time, on one thread of the process."""

    def __init__(self, place: str, *, timeout: float = TIMEOUT) -> None:
        """Open it; nothing is asked yet. Credentials come from the environment alone.

        Args:
            place: `${NAME}` in it stands for what the environment holds.
            timeout: seconds that one request may take, and for which one that fails is made again until `be_patient`.
        Raises:
            InputError: the client is not installed, or takes no such place.
        """
        library = client()
        if library is None:
            raise InputError(f"{hide_passwords(place)} needs obstore; install it: {INSTALL}")
        self.place, self._patience = hide_passwords(place).rstrip("/"), (timeout, "data.timeout")
        self.traffic = Traffic()
        self._library, self._store = library, _open(library, filled_in(place), timeout)
        self._given, self._timeout = place, timeout
        self._stop, self._told = threading.Event(), -TOLD

    def be_patient(self, patience: float) -> None:
        """Make requests that fail again for so many seconds: what worked once is expected to come back."""
        self._patience = patience, "data.patience"

    def name(self, name: str) -> str:
        """A file as it may be shown."""
        return f"{self.place}/{name}"

    def gives_ranges(self, name: str) -> bool:
        """Whether parts of files can be had, tried on one that should be there."""
        try:
            self.ranges([(name, [0], [1])])
        except NoRanges:
            return False
        return True

    def whole(self, names: Sequence[str], limit: int = MOST) -> list[bytes | OSError]:
        """Files of at most `limit` bytes, all at once; in place of one that cannot be had, why."""
        return self._run([self._whole(name, limit) for name in names])

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Sizes in bytes; None: there is no such file."""
        found = self._run([self._size(name) for name in names])
        return [None if isinstance(each, OSError) else each for each in found]

    @property
    def lists(self) -> bool:
        """Whether it tells which files there are; a web server does not."""
        return not isinstance(self._store, self._library.store.HTTPStore)

    def entries(self, folder: str = "", *, deep: bool = True) -> list[Entry]:
        """The files in a folder, those of folders in it included if `deep`; none: there is no such folder.

        Raises:
            InputError: the store cannot be reached, or refuses us.
        """

        async def ask() -> Sequence[Any]:
            if deep:
                return await self._library.list(self._store, folder or None).collect_async()
            return (await self._library.list_with_delimiter_async(self._store, folder or None))["objects"]

        (found,) = self._run([self._persist(folder, ask)])
        return [] if isinstance(found, OSError) else [_entry(each) for each in found]

    def look_up(self, names: Sequence[str], *, optional: bool = False) -> list[Entry | None]:
        """What is there under these names; None: no such file.

        Args:
            optional: a file that is refused counts as none, as web servers refuse names that they do not have.
        """
        found = self._run([self._look_up(name, optional) for name in names])
        return [None if isinstance(each, OSError) else each for each in found]

    def pieces(self, asked: Sequence[tuple[Entry, int, int]]) -> list[bytes]:
        """Bytes start .. end - 1 of files, all of them, at once: (file, start, end) each.

        Raises:
            InputError: one is gone, or another one than when it was looked up; or the store cannot be reached, or refuses us.
            NoRanges: the server gives whole files alone.
        """
        found = []
        for (entry, _, _), content in zip(asked, self._run([self._piece(*each) for each in asked]), strict=True):
            if isinstance(content, OSError):
                raise InputError(f"{self.name(entry.name)} {content} now; give the same command again") from content
            found.append(content)
        return found

    def ranges(self, asked: Sequence[tuple[str, list[int], list[int]]]) -> list[list[memoryview] | OSError]:
        """Byte ranges of files, all at once: (name, starts, ends) each. Past a file's end there are fewer bytes.

        Raises:
            NoRanges: the server gives whole files alone.
        """
        return self._run([self._ranges(*each) for each in asked])

    def put(self, name: str, path: Path) -> None:
        """Send a file, which is there whole or not at all."""
        to = _open(self._library, filled_in(self._given), self._timeout, tries=10)  # of each part of a large file
        self._run([self._persist(name, lambda: self._library.put_async(to, name, path))])

    def interrupt(self) -> None:
        """End what is under way; those who wait for it get an InputError."""
        stop, self._stop = self._stop, threading.Event()
        stop.set()

    def _run(self, tasks: Sequence[Coroutine[Any, Any, T]]) -> list[T | OSError]:
        """Await the tasks on the process's loop; an OSError stands in the place of what it ended."""
        if not tasks:
            return []
        stop, gathered = self._stop, _gather(tasks)
        future = asyncio.run_coroutine_threadsafe(gathered, _loop(os.getpid()))
        while True:
            try:
                found = future.result(0.2)
                break
            except TimeoutError:
                if stop.is_set():
                    future.cancel()
                    raise InputError(f"{self.place}: reading was ended") from None
        for each in found:
            if isinstance(each, BaseException) and not isinstance(each, OSError):
                raise each
        return found

    async def _whole(self, name: str, limit: int) -> bytes:
        async def ask() -> bytes:
            answer = await self._library.get_async(self._store, name)
            if answer.meta["size"] > limit:
                raise OSError(f"has {answer.meta['size']} bytes, more than {limit} is not read")
            return bytes(await answer.bytes_async())

        content = await self._persist(name, ask)
        self.traffic.bytes += len(content)
        return content

    async def _size(self, name: str) -> int:
        return (await self._persist(name, lambda: self._library.head_async(self._store, name)))["size"]

    async def _look_up(self, name: str, optional: bool) -> Entry | None:
        try:
            found = await self._persist(name, lambda: self._library.head_async(self._store, name))
            return _entry(found)._replace(name=name)
        except Refused:
            if optional:
                return None
            raise

    async def _piece(self, entry: Entry, start: int, end: int) -> bytes:
        async def ask() -> bytes:
            answer = await self._library.get_async(self._store, entry.name, options={"range": (start, end)})
            now = _entry(answer.meta)
            if now.size != entry.size or now.version != entry.version:
                raise InputError(
                    f"{self.name(entry.name)} has changed while it was read; give the same command again when it is whole"
                )
            return bytes(await answer.bytes_async())

        try:
            content = await self._persist(entry.name, ask) if end > start else b""
        except _PastTheEnd:
            content = b""
        if len(content) != end - start:
            raise InputError(
                f"{self.name(entry.name)}: {len(content)} of {end - start} bytes came; give the same command again"
            )
        self.traffic.bytes += len(content)
        return content

    async def _ranges(self, name: str, starts: list[int], ends: list[int]) -> list[memoryview]:
        """Ranges that are near each other come in one piece."""
        pieces: list[tuple[int, int]] = []
        for start, end in sorted(zip(starts, ends, strict=True)):
            if pieces and start <= pieces[-1][1] + NEAR:
                pieces[-1] = pieces[-1][0], max(pieces[-1][1], end)
            else:
                pieces.append((start, end))
        had = await asyncio.gather(*(self._range(name, start, end) for start, end in pieces))
        firsts = [first for first, _ in pieces]
        found = []
        for start, end in zip(starts, ends, strict=True):
            place = bisect_right(firsts, start) - 1
            found.append(had[place][start - firsts[place] : end - firsts[place]])
        return found

    async def _range(self, name: str, start: int, end: int) -> memoryview:
        try:
            found = await self._persist(
                name, lambda: self._library.get_range_async(self._store, name, start=start, end=end)
            )
        except _PastTheEnd:
            found = b""
        self.traffic.bytes += len(found)
        return memoryview(found).cast("B")

    async def _persist(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask, and ask again while the store fails, with pauses that grow, until patience is at its end.

        Raises:
            Missing: the store says that there is no such file.
            InputError: it refuses us, or fails for too long.
        """
        (patience, setting), begun, pause, attempt = self._patience, time.monotonic(), PAUSES[0], 0
        while True:
            attempt += 1
            try:
                self.traffic.requests += 1
                async with _at_once():
                    return await ask()
            except FileNotFoundError as error:
                raise Missing("is missing") from error
            except self._library.exceptions.NotSupportedError as error:
                raise NoRanges(self.place) from error
            except (PermissionError, self._library.exceptions.BaseError) as error:
                reason = self._reason(name, error)
                if attempt >= ATTEMPTS and time.monotonic() - begun + pause > patience:
                    raise InputError(
                        f"{self.name(name)} cannot be read for {patience:g} s ({setting}): {reason}; correct the place or, "
                        f"when it is there again, give the same command; a run goes on with --run.resume auto"
                    ) from error
                self._tell(name, reason)
            await asyncio.sleep(pause * _jitter.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSES[1])

    def _reason(self, name: str, error: Exception) -> str:
        """What went wrong, in a line; raises what asking again cannot mend."""
        text, kinds = _bare(error), self._library.exceptions
        if "416 Range Not Satisfiable" in text:
            raise _PastTheEnd
        if isinstance(error, PermissionError | kinds.PermissionDeniedError | kinds.UnauthenticatedError):
            raise Refused(
                f"{self.name(name)} is refused to us: the credentials in the environment are missing, expired, or do not "
                f"allow it; renew them there, and give the same command; a run goes on with --run.resume auto"
            ) from error
        if METADATA in text:
            return "the environment names no credentials (docs/cloud.md), and this machine has none of its own"
        return hide_passwords(text)[:300]

    def _tell(self, name: str, reason: str) -> None:
        self.traffic.retries += 1
        if time.monotonic() - self._told > TOLD:
            self._told = time.monotonic()
            logger.warning("%s: %s; asked again, %d times so far", self.name(name), reason, self.traffic.retries)


class _PastTheEnd(Exception):
    """A range begins behind the last byte."""


def _entry(meta: Mapping[str, Any]) -> Entry:
    """What the client tells of a file; stores quote versions in lists otherwise than in answers."""
    changed = int(meta["last_modified"].timestamp() * 1000) * 10**6
    return Entry(meta["path"], meta["size"], changed, (meta["e_tag"] or "").removeprefix("W/").strip('"'))


async def _gather(tasks: Sequence[Coroutine[Any, Any, T]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def _open(library: ModuleType, place: str, timeout: float, tries: int = 0) -> Any:
    """The client's store of a place, which itself asks so many times again.

    Raises:
        InputError: it takes no such place.
    """
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout), "connect_timeout": timedelta(seconds=timeout)}
    parts = urlsplit(place)
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    if parts.scheme == "http" or (parts.scheme == "s3" and endpoint.startswith("http://")):
        options["allow_http"] = True
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        login, _, host = parts.netloc.rpartition("@")
        token = base64.b64encode(unquote(login).encode()).decode()
        options["default_headers"] = {"authorization": f"Basic {token}"}
        place = urlunsplit(parts._replace(netloc=host))
    again = {"max_retries": tries, "retry_timeout": timedelta(seconds=timeout)}
    try:
        return library.store.from_url(place, client_options=options, retry_config=again)
    except (library.exceptions.BaseError, ValueError) as error:
        reason = f"{hide_passwords(_bare(error))[:200]}; docs/cloud.md says what the environment must name"
        raise InputError(f"{hide_passwords(place)} cannot be opened: {reason}") from None


def _bare(error: Exception) -> str:
    """What the client says, in a line, without its own objects."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


@cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop of this process, on a thread that ends with it."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name=f"store-{process}").start()
    return loop


@cache
def _limit(process: int) -> asyncio.Semaphore:
    return asyncio.Semaphore(AT_ONCE)


def _at_once() -> asyncio.Semaphore:
    return _limit(os.getpid())
