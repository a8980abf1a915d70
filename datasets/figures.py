"""Figures of matplotlib as files of pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from alliance.errors import InputError
from alliance.files import naming, replacing
from datasets.memory import give_back

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: "Figure", path: Path, dpi: int = 90) -> None:
    """Write a figure, whole or not at all, in a folder that is made if need be, and forget it.

    Raises:
        InputError: the name's ending is of no kind of picture.
        OSError: it cannot be written; an older picture stays.
    """
    from matplotlib import pyplot

    try:
        form = path.suffix.removeprefix(".").lower() or "png"
        if form not in figure.canvas.get_supported_filetypes():
            raise InputError(f"{path}: {form!r} is no kind of picture; name a .png file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), replacing(path) as file:
            figure.savefig(file, dpi=dpi, format=form)
    finally:
        pyplot.close(figure)
        figure.clear()
        give_back()  # figures hold themselves in cycles, found late, and meanwhile the heap grows around them
