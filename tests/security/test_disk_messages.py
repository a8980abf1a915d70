"""What cannot be written is told with its place and the system's own words, whichever library wrote it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, environment

PROGRAM = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
import torch
from alliance.export_files import save_tensors
from alliance.files import naming, replace_file
path, values = Path({path!r}), torch.zeros(1_000_000)
def by_torch():
    with naming(path):
        torch.save(values, path)
try:
    {{"bytes": lambda: replace_file(path, bytes(4_000_000)),
      "safetensors": lambda: save_tensors({{"a": values}}, path),
      "torch": by_torch}}[{writer!r}]()
except OSError as error:
    print(error.strerror, error.filename, sorted(each.name for each in path.parent.iterdir() if each != path))
"""


@pytest.mark.parametrize("writer", ["bytes", "safetensors", "torch"])
def test_a_full_disk_is_told_as_such_with_the_place(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "disk" / "a.bin"
    path.parent.mkdir()
    program = PROGRAM.format(root=str(ROOT), path=str(path), writer=writer)
    script = f'mount -t tmpfs -o size=1m none {path.parent} || exit 77; exec {sys.executable} -c "$PROGRAM"'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=environment() | {"PROGRAM": program}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no tmpfs can be mounted here")
    assert done.stdout == f"No space left on device {path} []\n", done.stderr
