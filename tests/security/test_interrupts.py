"""Ctrl-C and failures of the system, at any time and in any command: a message and an exit code, never a traceback."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datasets.commands import explain, run_body
from tests.helpers.runs import ROOT, environment


def _heed() -> None:
    """Ctrl-C is heard, also where these tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _await_library(process: subprocess.Popen[str], name: str) -> None:
    """Until a process has begun to load a library."""
    until = time.monotonic() + 60
    while name not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "script", ["launch/pretrain.py", "launch/shards.py", "finetune/classify.py", "finetune/predict.py"]
)
@pytest.mark.parametrize("library", ["libc10", "numpy"])
def test_ctrl_c_while_libraries_are_imported(script: str, library: str) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), "--help"], env=environment(), preexec_fn=_heed, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _await_library(process, library)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    assert output == "stopped before anything was done\n"


def test_ctrl_c_is_ignored_while_libraries_are_imported_where_it_was() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch/convert.py"), "--help"], env=environment(), preexec_fn=_ignore, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    _await_library(process, "libc10")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_its_message_and_only_once(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    tidied = []

    def body() -> list[str]:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), number)  # an impatient user
            tidied.append(True)
        return ["done"]

    with pytest.raises(SystemExit) as caught:
        run_body(body, stopped="stopped; the finished ones are kept")
    assert caught.value.code == 130
    assert tidied
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "stopped; the finished ones are kept\n")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "No space left on device; make room there"),
        (errno.EDQUOT, "make room there"),
        (errno.EACCES, "Permission denied; see that you may read and write there"),
        (errno.EROFS, "Read-only file system; choose a place that can be written"),
        (errno.ENAMETOOLONG, "File name too long; choose a shorter name"),
        (errno.EIO, "see that the disk is not failing"),
    ],
)
def test_failures_of_the_system_name_the_place_and_the_mend(
    number: int, mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> list[str]:
        raise OSError(number, os.strerror(number), "/data/tiles/a.tif")

    with pytest.raises(SystemExit) as caught:
        run_body(body, stopped="")
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /data/tiles/a.tif: ")
    assert mend in said
    assert len(said.splitlines()) == 1


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_body(lambda: [str(1 // 0)], stopped="")


def test_too_little_memory_is_one_line() -> None:
    assert explain(MemoryError()).startswith("not enough memory; take smaller pieces")


def test_a_reader_of_the_lines_that_leaves_is_no_failure_to_tell(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from datasets.commands import run_body\nrun_body(lambda: ['a' * 100_000] * 100, stopped='')"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
