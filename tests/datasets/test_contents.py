"""One checksum of files: of names and contents, whatever their place and time."""

import os
import shutil
from pathlib import Path

import pytest

from datasets import contents
from datasets.contents import digest_files


def written(folder: Path, **texts: bytes) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    return {name: folder / name for name in texts}


@pytest.mark.parametrize("whole", [1 << 30, 0])
def test_the_same_contents_have_the_same_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(contents, "WHOLE", whole)
    large = os.urandom(300_000)
    files = written(tmp_path / "a", one=b"1", two=large)
    found = digest_files(files)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "one", (1, 1))
    assert digest_files({name: tmp_path / "b" / name for name in files}) == found
    assert digest_files(dict(reversed(files.items()))) == found
    changed = {
        "a byte": {"one": b"2", "two": large},
        "the end": {"one": b"1", "two": large[:-1] + bytes([large[-1] ^ 1])},
        "the middle": {"one": b"1", "two": large[:150_000] + bytes([large[150_000] ^ 1]) + large[150_001:]},
        "the length": {"one": b"1", "two": large + b"0"},
        "names": {"two": b"1", "one": large},
        "one less": {"one": b"1"},
    }
    for number, texts in enumerate(changed.values()):
        assert digest_files(written(tmp_path / f"c{number}", **texts)) != found
