"""`--verify`: flipped, cut and missing shards are named with a mend; each test follows the mend until all is good again."""

import json
import re
import struct
import zipfile
from pathlib import Path

import pytest

from alliance.errors import InputError
from datasets.shards import LoaderConfig, ShardLoader, ShardSource, SourceConfig
from datasets.shards.command import main
from datasets.shards.index import Sidecar
from tests.helpers.rasters import write_sentinel2
from tests.helpers.shards import SENSOR as GREY
from tests.helpers.shards import write_tiny_shards

SENSOR = "sentinel2-l1c"


def make(root: Path) -> dict[str, bytes]:
    """The command that makes the shards, and what it made: 3 scenes of 4 tiles in several tars."""
    scenes = ["--sensor", SENSOR, "--tile", "16", "--workers", "1", "--shard-mb", "0.05"]
    main([str(root / "in"), "--out", str(root / "out"), *scenes])
    return {path.name: path.read_bytes() for path in (root / "out").iterdir()}


def verify(folder: Path, *more: str) -> None:
    main(["--verify", str(folder), "--workers", "1", *more])


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        verify(folder, *more)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {folder}") and "Traceback" not in told and told.count("\n") == 1
    return told


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sentinel2(tmp_path / "in", scenes=3, size=32)
    return tmp_path


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(bytes(content))


def first_number(arrays: Path) -> int:
    """The place of the first byte of the first array's numbers, after its two headers."""
    with zipfile.ZipFile(arrays) as file:
        start = file.infolist()[0].header_offset
    names = struct.unpack_from("<HH", arrays.read_bytes(), start + 26)
    header = start + 30 + sum(names)
    return header + 10 + struct.unpack_from("<H", arrays.read_bytes(), header + 8)[0]


def flip_sample(tar: Path, number: int) -> str:
    """Change one number of a sample; its key."""
    sidecar = Sidecar.load(tar.with_suffix(".npz"))
    flip(tar, int(sidecar.places[SENSOR].offset[number]) + 5)
    return sidecar.keys[number].decode()


def test_good_shards_are_called_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(len(content) for name, content in make(root).items() if name.endswith(".tar"))
    capsys.readouterr()
    verify(root / "out")
    assert re.fullmatch(
        rf"12 samples in \d+ shards, {size / 1e6:.1f} MB, are .* in {root / 'out'}\n", capsys.readouterr().out
    )


def test_a_flipped_byte_is_found_and_written_anew(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = make(root)
    tar = root / "out" / "shard-000001.tar"
    key = flip_sample(tar, 1)
    assert make(root)[tar.name] != before[tar.name]  # the command alone sees nothing: sizes are the same
    told = refused(capsys, root / "out")
    assert "1 of " in told and "shard-000001.tar holds other bytes than were written, in 1 of " in told and key in told
    assert f"python launch/shards.py --verify {root / 'out'} --overwrite, and then the command" in told
    told = refused(capsys, root / "out", "--overwrite")
    assert "give the launch/shards.py command that made the shards again" in told
    assert make(root) == before
    verify(root / "out")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tar: flip(tar, 3), "none of them in a sample's numbers"),  # the name of a member
        (lambda tar: tar.write_bytes(tar.read_bytes()[:-512]), r"has \d+ bytes, not \d+"),
        (lambda tar: tar.unlink(), "cannot be read: shard-000000.tar: No such file"),
        (lambda tar: flip(tar.with_suffix(".npz"), first_number(tar.with_suffix(".npz"))), "sidecar"),
        (lambda tar: tar.with_suffix(".npz").unlink(), "cannot be read: shard-000000.npz: No such file"),
        (lambda tar: tar.with_suffix(".npz").write_bytes(tar.with_name("shard-000002.npz").read_bytes()), "sidecar of other"),
    ],
    ids=["header", "cut", "missing", "sidecar flipped", "sidecar missing", "sidecar of another"],
)  # fmt: skip
def test_every_damage_is_named_and_its_mend_works(damage, reason: str, root: Path, capsys) -> None:
    write_sentinel2(root / "in", scenes=3, size=40)  # 9 tiles: the last shard has fewer samples
    before = make(root)
    damage(root / "out" / "shard-000000.tar")
    assert re.search(f"1 of {sum(name.endswith('.tar') for name in before)} shards are damaged: shard-000000.tar .*{reason}",
                     refused(capsys, root / "out"))  # fmt: skip
    refused(capsys, root / "out", "--overwrite")
    assert make(root) == before
    verify(root / "out")


def test_an_index_of_other_figures_is_found_and_written_anew(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = make(root)
    path = root / "out" / "index.json"
    record = json.loads(path.read_text())
    record["dropped"] = 0
    record["statistics"][SENSOR]["max"][0] += 1
    path.write_text(json.dumps(record))
    assert "has other statistics than its shards" in refused(capsys, root / "out")
    assert make(root) == before
    path.write_text("{")
    assert "is damaged" in refused(capsys, root / "out")
    assert make(root) == before
    verify(root / "out")


def test_tars_of_others_are_never_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_shards(tmp_path / "out", (3, 2))
    good = (folder / "shard-000001.tar").read_bytes()
    names = sorted(path.name for path in folder.iterdir())
    sidecar = Sidecar.load(folder / "shard-000001.npz")
    flip(folder / "shard-000001.tar", int(sidecar.places[GREY].offset[0]))
    for more in ([], ["--overwrite"]):
        told = refused(capsys, folder, *more)
        assert "in 1 of 2 samples (s1-0)" in told
        assert f"copy these tars again, then: python launch/shards.py --index {folder} --sensor {GREY}" in told
    assert sorted(path.name for path in folder.iterdir()) == names
    (folder / "shard-000001.tar").write_bytes(good)
    main(["--index", str(folder), "--sensor", str(folder / "sensor.yaml"), "--workers", "1"])
    verify(folder)


def test_the_reader_names_the_command(root: Path) -> None:
    make(root)
    source = ShardSource(root / "out")
    for shard in source.index.shards:
        for sample in range(shard.samples):
            flip_sample(root / "out" / shard.name, sample)
    loader = ShardLoader([SourceConfig(shards=str(root / "out"))], LoaderConfig(micro=2))
    with pytest.raises(
        InputError, match=f"have the damaged ones named: python launch/shards.py --verify {root / 'out'}$"
    ):
        next(iter(loader))
    (root / "out" / source.index.shards[0].name).unlink()
    with pytest.raises(InputError, match="is missing.*give the launch/shards.py command that made them again"):
        source.check()
    make(root)
    assert not source.check()


def test_nothing_else_is_given_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scenes", "--verify", str(tmp_path)])
    assert "give no scenes, --out or --index beside it" in capsys.readouterr().err
    assert "has no index.json" in refused(capsys, tmp_path)
