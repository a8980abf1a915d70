"""A server on the loopback that gives the files of a folder, whole or in ranges, as object storage does."""

import os
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "imagery"


class Files(BaseHTTPRequestHandler):
    """The files of a folder, whole or in ranges, as S3 gives them, each answer held back."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder, delay, asked = Path(), 0.0, 0

    def do_GET(self) -> None:
        Files.asked += 1
        time.sleep(self.delay)
        path = self.folder / self.path.lstrip("/").removeprefix(f"{BUCKET}/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or size), size - 1) + 1
        self.send_response(206 if self.headers["Range"] else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        with path.open("rb") as file, suppress(BrokenPipeError, ConnectionResetError):  # the reader went away
            while start < stop:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, stop - start)

    def do_HEAD(self) -> None:
        path = self.folder / self.path.lstrip("/").removeprefix(f"{BUCKET}/")
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def serve_folder(folder: Path) -> dict[str, str]:
    """Serve a folder as s3://imagery until this process ends; the environment that reaches it. Signatures are not looked at."""
    Files.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "no_proxy": "127.0.0.1",
    }
