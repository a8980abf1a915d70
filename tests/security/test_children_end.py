"""A process that is killed takes with it all that it started, and what it left lying is removed by the next one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alliance.errors import InputError
from alliance.files import replace_file
from datasets.descriptors import only_writer
from datasets.imagery.maps import Grid, class_map, write_class_map
from datasets.releases.command import main
from datasets.shards import repack
from datasets.synthetic.pair_trees import write_ddhr
from tests.helpers import warm
from tests.helpers.processes import all_end, descendants, runs
from tests.helpers.runs import ROOT, environment

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc"),
    pytest.mark.timeout(90),
]
PATIENCE = 10  # seconds; a machine with much to do wakes processes late
GRID, CLASSES = Grid(64, 64), {"a": (1, 2, 3)}


Program = Callable[..., warm.Started]


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Starts a program on a text of Python; it must `say` something when it is ready."""
    started: list[warm.Started] = []

    def start(text: str, **environ: str) -> warm.Started:
        said = tmp_path_factory.mktemp("said") / "line"
        started.append(warm.start(["-m", "tests.helpers.hold", text, str(said)], environment() | environ))
        started[-1].said = said  # pyright: ignore[reportAttributeAccessIssue]
        return started[-1]

    yield start
    for process in started:
        process.kill()


def ready(process: Any) -> list[int]:
    """The processes that it says it has started."""
    until = time.monotonic() + 60
    while not process.said.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return [int(word) for word in process.said.read_text().split()]


def killed(process: warm.Started) -> None:
    process.kill()
    process.wait(10)


OPENERS = """
import subprocess, sys, time
from datasets import children
line = children.start("(echo begun; sleep 100) | cat; sleep 100", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
line.process.stdout.readline()
single = children.guard(subprocess.Popen(["sleep", "100"]))
ended = children.guard(subprocess.Popen(["sleep", "100"]))
ended.end()
assert ended.process.returncode == -9
other = subprocess.Popen(["sleep", "100"])  # nobody asked for its end
say(single.process.pid, line.process.pid, other.pid)
time.sleep(100)
"""


def test_programs_end_with_their_parent_and_with_them_what_they_started(
    program: Program,
) -> None:
    parent = program(OPENERS)
    single, line, other = ready(parent)
    started = [single, line, *descendants(line)]
    assert len(started) >= 4  # the shell's pipeline
    assert all(map(runs, started))
    killed(parent)
    try:
        assert all_end(started, PATIENCE)
        assert runs(other)
    finally:
        os.kill(other, signal.SIGKILL)


@pytest.mark.parametrize("end", ["", "os._exit(1)", "raise SystemExit(3)", "os.kill(os.getpid(), 9)"])
def test_nothing_is_left_however_the_parent_goes(end: str, program: Program) -> None:
    text = """
import os, subprocess, time
from datasets import children
line = children.start("sleep 100", stdin=subprocess.DEVNULL)
watching = children._guardian.process
say(line.process.pid, watching.pid)
"""
    parent = program(f"{text}\n{end}")
    everything = ready(parent)
    assert len(everything) == 2
    parent.wait(30)
    assert all_end(everything, PATIENCE)


KILLED_AT_ONCE = """
import os, subprocess
from datasets import children
start = subprocess.Popen.__init__
def killed(process, *given, **options):
    start(process, *given, **options)
    say(process.pid)
    os.kill(os.getpid(), 9)
subprocess.Popen.__init__ = killed
children.start("touch {place}; sleep 100")
"""


def test_a_program_whose_parent_is_killed_as_it_starts_never_begins(tmp_path: Path, program: Program) -> None:
    parent = program(KILLED_AT_ONCE.format(place=tmp_path / "begun"))
    (single,) = ready(parent)
    parent.wait(30)
    assert all_end([single], PATIENCE)
    assert not (tmp_path / "begun").exists()


def test_an_opener_of_shards_ends_with_the_run(tmp_path: Path, program: Program) -> None:
    line = f"echo $$ >> {tmp_path}/opener; sleep 100 | cat {{}}"
    parent = program(f"from datasets.shards.stream import StreamSource\nStreamSource({f'pipe:{line}'!r}, timeout=90)")
    until = time.monotonic() + 60
    while not (tmp_path / "opener").exists() or not (tmp_path / "opener").read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.05)
    opener = int((tmp_path / "opener").read_text())
    started = [opener, *descendants(opener)]
    killed(parent)
    assert all_end(started, PATIENCE)


WORKERS = """
import os, sys
from pathlib import Path
from datasets.shards.write import run_jobs
from tests.helpers.processes import SleepJob, sleep
run_jobs([SleepJob(Path(sys.argv[1]) / str(number)) for number in range(2)], sleep, 2)
"""

HOLDS_ON = """
import ctypes, multiprocessing, os, sys, time
from datasets.children import end_with_parent
def hold(busy):
    end_with_parent()
    print(os.getpid(), flush=True)
    (ctypes.PyDLL if busy else ctypes.CDLL)(None).sleep(100)  # PyDLL: no thread of Python runs meanwhile
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=hold, args=(sys.argv[1] == "busy",)).start()
    time.sleep(100)
"""


@pytest.mark.parametrize("busy", ["busy", "idle"])
def test_a_process_of_multiprocessing_ends_with_its_parent_whatever_it_does(busy: str, tmp_path: Path) -> None:
    (tmp_path / "holds_on.py").write_text(HOLDS_ON)
    environ = environment() | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, str(tmp_path / "holds_on.py"), busy]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        assert all_end([child], PATIENCE)


def test_workers_of_shards_end_with_the_command(tmp_path: Path) -> None:
    environ = environment() | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", WORKERS, str(tmp_path)], cwd=ROOT, env=environ) as parent:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("*.begun"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        everything = list(descendants(parent.pid))
        assert len(everything) >= 3  # the workers and the server that forks them
        parent.kill()
    assert all_end(everything, PATIENCE)


MAP = """
import time
from pathlib import Path
from datasets.imagery.maps import Grid, class_map
with class_map(Path(PLACE), Grid(64, 64), {"a": (1, 2, 3)}):
    say()
    time.sleep(100)
"""


def test_what_a_killed_map_left_is_removed_by_the_next_and_a_living_one_is_let_alone(
    tmp_path: Path, program: Program
) -> None:
    path = tmp_path / "map.tif"
    dead, living = (program(f"PLACE = {str(path)!r}\n{MAP}") for _ in range(2))
    for each in (dead, living):
        ready(each)
    assert len(list(tmp_path.iterdir())) == 2
    mine = tmp_path / ".map.tif.backup"  # of the user
    mine.mkdir()
    killed(dead)
    with class_map(path, GRID, CLASSES) as target:
        target.write(np.zeros((64, 64), np.uint8), 1)
    assert len(list(tmp_path.glob(".map.tif.*.tmp"))) == 1
    assert mine.is_dir()
    assert living.poll() is None
    killed(living)
    with class_map(path, GRID, CLASSES) as target:
        target.write(np.zeros((64, 64), np.uint8), 1)
    assert {each.name for each in tmp_path.iterdir()} == {"map.tif", "map.tif.aux.xml", ".map.tif.backup"}


NAMED = """
import os, time
from pathlib import Path
import numpy as np
from datasets.imagery.maps import Grid, write_class_map
calls, sync = [], os.fsync
def slow(descriptor):
    calls.append(descriptor)
    if len(calls) == 2:  # the map's own comes first, then that of what stands beside it
        say()
        time.sleep(100)
    sync(descriptor)
os.fsync = slow
write_class_map(Path(PLACE), Grid(64, 64), {"a": (1, 2, 3)}, np.zeros((64, 64), np.uint8))
"""


def test_a_kill_while_the_names_of_classes_are_written_leaves_nothing_after_the_next_command(
    tmp_path: Path, program: Program
) -> None:
    path = tmp_path / "map.tif"
    dead = program(f"PLACE = {str(path)!r}\n{NAMED}")
    ready(dead)
    killed(dead)
    write_class_map(path, GRID, CLASSES, np.zeros((64, 64), np.uint8))
    assert {each.name for each in tmp_path.iterdir()} == {"map.tif", "map.tif.aux.xml"}


WRITE = """
import time
from pathlib import Path
from alliance.files import replacing
with replacing(Path(PLACE)) as file:
    file.write(b"half")
    file.flush()
    say()
    time.sleep(100)
"""


def test_what_a_killed_writer_of_any_file_left_goes_with_the_next_and_a_living_one_keeps_its_own(
    tmp_path: Path, program: Program
) -> None:
    path = tmp_path / "labels[1].csv"  # a name with signs that have a meaning in patterns
    dead, living = (program(f"PLACE = {str(path)!r}\n{WRITE}") for _ in range(2))
    for each in (dead, living):
        ready(each)
    theirs = [tmp_path / "labels[1].csv.tmp", tmp_path / f"labels1.csv.{'0' * 16}.tmp"]
    link = tmp_path / f"labels[1].csv.{'0' * 16}.tmp"
    for each in theirs:
        each.touch()
    link.symlink_to(theirs[0])
    assert len(list(tmp_path.iterdir())) == 5
    killed(dead)
    replace_file(path, b"whole")
    assert len(list(tmp_path.iterdir())) == 5 and path.read_bytes() == b"whole" and living.poll() is None
    killed(living)
    replace_file(path, b"whole")
    assert set(tmp_path.iterdir()) == {path, link, *theirs}


def test_a_planted_link_in_place_of_what_a_kill_left_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").touch()
    link = tmp_path / f".map.tif.{'0' * 16}.tmp"
    link.symlink_to(tmp_path / "theirs")
    with class_map(tmp_path / "map.tif", GRID, CLASSES):
        pass
    assert (tmp_path / "theirs" / "precious").exists()
    assert link.is_symlink()


REPACK = """
import time
from pathlib import Path
from datasets.descriptors import scratch_folder
with scratch_folder(Path(PLACE)) as folder:
    (folder / "member.tif").write_bytes(bytes(1000))
    say()
    time.sleep(100)
"""


def test_members_of_foreign_tars_that_a_kill_left_are_removed_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / "alliance-shards"
    dead = program(f"PLACE = {str(place)!r}\n{REPACK}")
    ready(dead)
    assert len(list(tmp_path.glob(".alliance-shards.*"))) == 1
    killed(dead)
    with pytest.raises(InputError, match="no .tar files"):
        repack.repack_folder(tmp_path, "rgb-uint8", tmp_path / "out")
    assert not list(tmp_path.glob(".alliance-shards.*"))


def test_a_killed_prepare_goes_on_from_whatever_moment(tmp_path: Path) -> None:
    write_ddhr(tmp_path / "in", pairs=2)
    out = tmp_path / "out"
    out.mkdir()
    (out / f"manifest.json.{'0' * 16}.tmp").touch()  # killed while the first file was written
    command = ["ddhr-sk", str(tmp_path / "in"), str(out), "--tile", "32"]
    main(command)
    assert json.loads((out / "manifest.json").read_text())["complete"]
    before = {path.relative_to(out) for path in out.rglob("*")}
    for name in (f"optical/a.tif.{'1' * 16}.tmp", f"pairs.yaml.{'2' * 16}.tmp", f"manifest.json.{'3' * 16}.tmp"):
        (out / name).touch()
    main(command)
    assert {path.relative_to(out) for path in out.rglob("*")} == before
    with only_writer(out), pytest.raises(SystemExit):
        main([*command, "--overwrite"])
    assert {path.relative_to(out) for path in out.rglob("*")} == before  # another one works there: nothing is removed


def test_the_names_of_classes_are_written_beside_a_map_whole_and_follow_no_link(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    (tmp_path / "map.tif.aux.xml").symlink_to(theirs)
    write_class_map(tmp_path / "map.tif", GRID, CLASSES, np.zeros((64, 64), np.uint8))
    assert theirs.read_text() == "precious"
    assert (tmp_path / "map.tif.aux.xml").read_text().count("<Category>") == len(CLASSES)
    assert {each.name for each in tmp_path.iterdir()} == {"map.tif", "map.tif.aux.xml", "theirs"}
