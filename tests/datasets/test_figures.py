"""Pictures are there whole or not at all."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

from alliance.errors import InputError
from datasets.figures import save_figure
from tests.helpers.runs import ROOT


class Stops(Artist):
    """Ends the drawing of its figure midway."""

    def draw(self, renderer: object) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("name", ["a.png", "new/folder/a.png", "a.PNG", "a"])
def test_a_figure_is_a_picture_of_its_size_with_the_umask_s_rights(name: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_figure(Figure(figsize=(2, 1)), tmp_path / name, dpi=50)
    finally:
        os.umask(before)
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.size) == ("PNG", (100, 50))
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640


def test_the_older_picture_stays_where_a_new_one_fails(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"older")
    figure = Figure()
    figure.add_artist(Stops())
    with pytest.raises(ZeroDivisionError):
        save_figure(figure, tmp_path / "a.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"older")]


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'doc' is no kind of picture; name a .png file"):
        save_figure(Figure(), tmp_path / "a.doc")
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        save_figure(Figure(), tmp_path / "file" / "a.png")
    assert str(tmp_path / "file") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """Forty pictures of eight images each; left to itself, their memory is found late and the heap grows by 1 MB a picture."""
    program = (
        "import sys; from pathlib import Path; import matplotlib; matplotlib.use('Agg')\n"
        "import numpy as np; from matplotlib import pyplot; from datasets.figures import save_figure\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "for number in range(50):\n"
        "    figure, axes = pyplot.subplots(2, 4, figsize=(10, 5))\n"
        "    for axis in axes.flat: axis.imshow(np.random.rand(64, 64, 3)); axis.set_title(str(number))\n"
        "    save_figure(figure, Path(sys.argv[1]))\n"
        "    if number == 9: began = resident()\n"
        "print((resident() - began) / 40)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.png")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(ended.stdout) < 200_000
