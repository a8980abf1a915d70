"""Pictures are there whole or not at all."""

import os
import stat
from pathlib import Path

import pytest
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

from alliance.errors import InputError
from datasets.figures import save_figure


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
