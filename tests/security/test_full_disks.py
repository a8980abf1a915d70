"""Disks that fill up, and limits of open files: what is there is whole, and nothing is taken for what it is not."""

import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio

from datasets.descriptors import SPARE, share_out
from datasets.imagery.maps import Grid, class_map
from datasets.shards import LoaderConfig, ShardLoader, SourceConfig
from datasets.shards.read import OPEN_SHARDS
from datasets.synthetic.pair_trees import write_whu
from tests.helpers.runs import ROOT, Ranks, arguments_of, environment, records
from tests.helpers.shards import write_tiny_shards

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
IN_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
PREPARE = """
mount -t tmpfs -o size={size}k none {out} || exit 77
{python} {root}/launch/prepare.py whu-opt-sar {whu} {out}/tiles --tile 32; first=$?
cp -r {out} {kept}/full
mount -o remount,size=64m {out} || exit 77
{python} {root}/launch/prepare.py whu-opt-sar {whu} {out}/tiles --tile 32 || exit 3
cp -r {out} {kept}/after
exit $first
"""


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize(
    "size", [120, *(pytest.param(size, marks=pytest.mark.long) for size in (60, 240))]
)  # kB; all need more
def test_tiles_on_a_full_disk_are_whole_or_not_there(size: int, tmp_path: Path) -> None:
    write_whu(tmp_path / "whu")
    (tmp_path / "out").mkdir()
    script = PREPARE.format(
        size=size, out=tmp_path / "out", kept=tmp_path, whu=tmp_path / "whu", root=ROOT, python=sys.executable
    )
    done = subprocess.run(
        [*IN_NAMESPACE, "sh", "-c", script], env=environment(), capture_output=True, text=True, timeout=280
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no tmpfs can be mounted here")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "full").rglob("*.tmp"))
    straight = tmp_path / "straight"
    command = [
        sys.executable,
        str(ROOT / "launch/prepare.py"),
        "whu-opt-sar",
        str(tmp_path / "whu"),
        str(straight),
        "--tile",
        "32",
    ]
    assert subprocess.run(command, env=environment(), capture_output=True, timeout=200).returncode == 0
    for tiles in (tmp_path / "full" / "tiles", tmp_path / "after" / "tiles"):
        for path in tiles.rglob("*.tif"):
            assert np.array_equal(read(path), read(straight / path.relative_to(tiles))), path
    names = [
        {str(path.relative_to(tree)) for path in tree.rglob("*.*")} for tree in (straight, tmp_path / "after" / "tiles")
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_map_that_does_not_fit_keeps_the_old_one(share: float, tmp_path: Path) -> None:
    """The limit is a share of what the file needs."""
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import numpy as np
from datasets.imagery.maps import Grid, class_map
pixels = np.random.default_rng(0).integers(0, 3, (1200, 1200), dtype=np.uint8)
with class_map(Path({str(tmp_path / "map.tif")!r}), Grid(1200, 1200), dict(a=(1, 2, 3), b=(4, 5, 6), c=(7, 8, 9))) as target:
    target.write(pixels, 1)
"""
    run = partial(
        subprocess.run, [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert run().returncode == 0
    before = (tmp_path / "map.tif").read_bytes()
    limit = int(len(before) * share)
    done = run(preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1
    assert re.search(r"make room, then give the same command again$|RasterioIOError: Write failed", done.stderr.strip())
    assert (tmp_path / "map.tif").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"map.tif", "map.tif.aux.xml"}


def test_a_map_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, (700, 900), dtype=np.uint8)
    with class_map(tmp_path / "map.tif", Grid(700, 900), {"a": (1, 2, 3), "b": (4, 5, 6), "c": (7, 8, 9)}) as target:
        target.write(pixels, 1)
    assert np.array_equal(read(tmp_path / "map.tif")[0], pixels)


def test_open_files_are_shared_out() -> None:
    assert share_out(1024, 4 * 6, OPEN_SHARDS) * 24 <= 1024 - SPARE
    assert share_out(1 << 20, 24, OPEN_SHARDS) == OPEN_SHARDS
    assert share_out(16, 1000, OPEN_SHARDS) == 1


LOADING = """
import os, resource, sys; sys.path.insert(0, {root!r})
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from contextlib import suppress
from datasets.shards import LoaderConfig, ShardLoader, SourceConfig
sources = [SourceConfig(shards=place) for place in sys.argv[1:]]
batches = iter(ShardLoader(sources, LoaderConfig(micro=64, workers=6)))
if {taken}:
    with suppress(OSError):
        while True:
            os.dup(0)
print(sum(len(next(batches).faults) for _ in range(66)))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.fixture(scope="module")
def four_sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """80 shards each."""
    folder = tmp_path_factory.mktemp("sources")
    return [str(write_tiny_shards(folder / f"{number}", [1] * 80, dtype="uint16")) for number in range(4)]


def load(sources: list[str], soft: int, hard: int, *, taken: bool = False) -> subprocess.CompletedProcess[str]:
    """66 batches by six threads of a process with such limits; `taken`: others hold all that may be open."""
    program = LOADING.format(root=str(ROOT), soft=soft, hard=hard, taken=taken)
    given = [sys.executable, "-c", program, *sources]
    return subprocess.run(
        given, env=environment(), capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize(("soft", "hard"), [(1024, 1024), (256, 256), (60, 1024)])
def test_many_sources_and_threads_stay_below_the_limit(soft: int, hard: int, four_sources: list[str]) -> None:
    """4 x 80 files for 6 threads are 1,920; a soft limit is raised as far as it may be."""
    done = load(four_sources, soft, hard)
    assert (done.returncode, done.stdout.split()) == (0, ["0", str(hard)]), done.stderr


def test_too_many_open_files_are_no_fault_of_the_data(four_sources: list[str]) -> None:
    done = load(four_sources, 200, 200, taken=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .endswith(
            "InputError: too many open files: this process may have 200; raise the limit (ulimit -n), or lower data.workers or "
            "the number of sources"
        )
    )


def test_an_iterator_that_is_left_closes_its_files(tmp_path: Path) -> None:
    folder = write_tiny_shards(tmp_path / "tiny", [1] * 20, dtype="uint16")
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=8, workers=2))

    def opened() -> int:
        return sum(str(folder) in str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())

    for _ in range(5):
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert opened() <= 2 * 20


def test_weights_that_are_not_finite_are_neither_saved_nor_exported(sar_shards: Path, tmp_path: Path) -> None:
    """Settings within their limits that no network survives."""
    settings = ("--run.steps", "5", "--optim.lr", "1e6", "--optim.weight_decay", "1e6", "--optim.warmup", "0")
    ((code, output),) = Ranks(arguments_of(tmp_path / "run", [sar_shards], *settings), 1).wait()
    assert code == 2, output
    assert "not finite" in output.strip().splitlines()[-1]
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "encoder").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert not [record for record in records(tmp_path / "run") if record.get("event") == "checkpoint"]


def test_a_run_of_which_no_step_was_finite_ends_with_an_error(sar_shards: Path, tmp_path: Path) -> None:
    command = [
        "-m",
        "tests.helpers.trouble_on_ranks",
        *arguments_of(tmp_path / "run", [sar_shards], "--run.steps", "2")[1:],
    ]
    ((code, output),) = Ranks(command, 1, environ={"TROUBLE": "nan:0:all"}).wait()
    assert code == 2, output
    assert "the last 2 steps were not finite" in output
    assert not (tmp_path / "run" / "encoder").exists()
