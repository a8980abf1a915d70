"""A real S3-compatible server on the loopback (moto's), that can be told to fail, to fall silent, and to go away."""

import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from obstore.store import from_url
from werkzeug.serving import BaseWSGIServer, make_server

from datasets.storage import store as store_module

BUCKET = "imagery"
SECRET = "not-to-be-seen-anywhere"
logging.getLogger("werkzeug").setLevel(logging.ERROR)
Reply = Iterable[bytes]


@dataclass
class ObjectStore:
    """One bucket. What it holds stays while the server is stopped."""

    port: int = 0
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, file, range
    trouble: Callable[[int, str], str] = lambda number, name: ""  # of a request: 503, 403, cut, silent
    delay: float = 0.0  # seconds before an answer
    _server: BaseWSGIServer | None = None

    def __post_init__(self) -> None:
        self._moto, self._over = DomainDispatcherApplication(create_backend_app), threading.Event()

    def start(self) -> "ObjectStore":
        """Serve, at the earlier port if there was one."""
        self._over.clear()
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Go away; whoever asks is refused."""
        self._over.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "no_proxy": "127.0.0.1",
        }

    def upload(self, folder: Path, name: str) -> str:
        """Put the files of a folder, and of those in it, into the bucket; their place."""
        if not any(file == BUCKET for _, file, _ in self.asked):
            with suppress(urllib.error.HTTPError):  # it is there
                request = urllib.request.Request(f"{self.address}/{BUCKET}", method="PUT")
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()
        store = from_url(f"s3://{BUCKET}/{name}", client_options={"allow_http": True}, **self._keys())
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            obstore.put(store, path.relative_to(folder).as_posix(), path)
        return f"s3://{BUCKET}/{name}"

    def remove(self, place: str, name: str) -> None:
        """Take a file away."""
        obstore.delete(from_url(place, client_options={"allow_http": True}, **self._keys()), name)

    def _keys(self) -> dict[str, Any]:
        return {
            "endpoint": self.address,
            "access_key_id": "someone",
            "secret_access_key": SECRET,
            "region": "us-east-1",
        }

    def _answer(self, environ: Mapping[str, Any], start: Callable[..., Any]) -> Reply:
        name = environ["PATH_INFO"].rpartition("/")[2]
        self.asked.append((environ["REQUEST_METHOD"], name, environ.get("HTTP_RANGE", "")))
        trouble = self.trouble(len(self.asked), name)
        self._over.wait(self.delay)
        if trouble == "silent":
            self._over.wait(60)
        if trouble in ("503", "403"):
            start(f"{trouble} Trouble", [("Content-Length", "0")])
            return [b""]
        reply = self._moto(environ, start)
        return [b"".join(reply)[:7]] if trouble == "cut" else reply


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    """A server until the block ends."""
    server = ObjectStore().start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def named_by_the_environment(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server as a user names it, without trouble, and with quick tries anew."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_module, "PAUSES", (0.01, 0.05))
    server.asked.clear()
    server.trouble, server.delay = (lambda number, name: ""), 0.0
    try:
        yield server
    finally:
        server.trouble, server.delay = (lambda number, name: ""), 0.0
