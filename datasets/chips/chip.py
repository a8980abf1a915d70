"""What a chip is, and how a set of chips is described."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from datasets.imagery.images import ImageSource
from datasets.imagery.scenes import Box, Skipped

Kind = Literal["folders", "table", "bigearthnet", "masks"]
SPLITS = {  # names that others give the three parts
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Chip(NamedTuple):
    """One image, or a window of it, with its labels."""

    name: str  # unlike those of all others
    files: tuple[Path, ...]
    labels: tuple[str, ...] = ()
    split: str | None = None  # None: nothing tells
    parts: Box | None = None  # None: the whole image
    beside: tuple[Path, ...] = ()  # of its second image


class Found(NamedTuple):
    """The chips of a set."""

    chips: list[Chip]
    classes: tuple[str, ...]  # in the order of their indices
    source: ImageSource  # what the images are
    skipped: list[Skipped]  # what cannot be used, with the reason
    notes: list[str]  # what else there is to say


def split_name(text: str) -> str:
    """The name of a part of the data as we call it; other names stay."""
    return SPLITS.get(text.strip().lower(), text.strip())


@dataclass(frozen=True, kw_only=True)
class ChipSet(Ranged):
    """Images with labels: where they lie, what tells their labels, and what their numbers mean."""

    path: str = ""
    """Folder of the images."""
    labels: Kind = "folders"
    """What tells the labels: folders (class/file, or split/class/file), table (a row per image), bigearthnet (a JSON file in
    the folder of every patch), masks (the label maps of `set`: every class that covers enough of a window).
    """
    table: str = ""
    """The table, .csv or .parquet, below `path`; empty: the only one that lies there."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns of the table by what they hold: file, label, split; those that are not given are known by usual names. Without
    a column of labels, every other column is a class, with 0 or 1 or a share.
    """
    lists: dict[str, str] = field(default_factory=dict)
    """Files below `path` with the names of the images of a split, one per line, by the split; images in none are left out."""
    classes: tuple[str, ...] = ()
    """Classes in their order; empty: those that are found, sorted."""
    merge: dict[str, str] = field(default_factory=dict)
    """Other names for labels, several may get one; an empty text: the label is left out."""
    unlabelled: Literal["keep", "drop"] = "keep"
    """Images without any label, where several are possible: they show that nothing is there, or they are left out."""
    image: ImageSource = field(default_factory=lambda: ImageSource(sensor="rgb-uint8", statistics="dataset"))
    """What the images are: sensor, bands, missing values, statistics; of `masks`, `set` tells it."""
    beside: ImageSource | None = None
    """Of `bigearthnet`: what second images of the patches are, such as Sentinel-1 beside Sentinel-2; null: there are none."""
    beside_path: str = ""
    """Folder of the second images, whose metadata name the patch that each belongs to."""
    set: str = ""
    """Of `masks`: description of the images with label maps, a name of configs/labelled/ or a YAML file."""
    role: str = ""
    """Of `masks`: which of the images of the description; empty: the first."""
    window: int | None = ranged(None, 8, 65536)
    """Of `masks`: side of the windows that images are cut into, pixels, at most; null: images are taken whole."""
    cover: float = ranged(0.02, 0, 1, above=True)
    """Of `masks` and of columns of shares: least share of an image that a class must cover to be a label."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", tuple(self.classes))
        if (self.labels == "masks") != bool(self.set):
            raise InputError(
                f"data.labels is {self.labels} and data.set is {self.set!r}; labels of masks need the description of a set, "
                f"and no others do"
            )
        if self.labels != "masks" and not self.path:
            raise InputError("data.path is empty; give the folder of the images")
        for name, used in (("table", "table"), ("columns", "table"), ("window", "masks"), ("role", "masks")):
            if getattr(self, name) and self.labels != used:
                raise InputError(f"data.{name} is of labels {used}, data.labels is {self.labels}; leave it out")
        if wrong := next((key for key in self.columns if key not in ("file", "label", "split")), None):
            raise InputError(f"data.columns names {wrong!r}; there are file, label and split")
        if (self.beside is None) != (not self.beside_path) or (self.beside_path and self.labels != "bigearthnet"):
            raise InputError(
                f"data.beside_path is {self.beside_path!r} and data.beside says {'nothing' if self.beside is None else 'what its images are'}; "
                f"second images, of labels bigearthnet alone, need both"
            )
        if self.image.files is not None:
            raise InputError(
                f"data.image.files is {self.image.files!r}; data.path and data.labels tell the files, leave it out"
            )
        if len({*self.classes}) < len(self.classes):
            raise InputError(f"data.classes are {', '.join(self.classes)}; name each once")
