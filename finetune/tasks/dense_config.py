"""Settings that all tasks share which give every pixel a class."""

from dataclasses import dataclass, field
from typing import Literal

from alliance.errors import InputError
from alliance.ranges import Ranged, ranged
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set

EVERY, NONE = "all", "none"  # of evaluate_without


@dataclass(frozen=True, kw_only=True)
class TileDataConfig(Ranged):
    """Images with label maps, and which of them serve for what."""

    set: str
    """Description of the images: a name of configs/labelled/, or a YAML file of one's own."""
    path: str | None = None
    """Folder of the files; null: the one in the description."""
    train: str = "train"
    """Split that is learnt from."""
    evaluate: str = "test"
    """Split on which the best network is chosen and scored; PAD has no other one than its test."""
    test: str | None = None
    """Split that the chosen network is scored on once, after the last step; null: none."""
    share: float = ranged(1.0, 0, 1, above=True)
    """Share of the training images that is learnt from, drawn by the seed; a smaller one is a part of a larger one."""
    window: int | None = ranged(None, 32, 65536)
    """Side of the windows, pixels, that larger images are read by; null: images are read whole."""
    stride: int | None = ranged(None, 1, 65536)
    """Pixels from one training window to the next, at most; null: the side of a window."""
    overlap: Literal["refuse", "count"] = "refuse"
    """What to do with test samples that also stand in training: refuse them, or count them in the log."""
    drop_classes: list[str | int] = field(default_factory=list)
    """Classes that are left out, by name or by number in the label maps: their pixels have no label."""
    workers: int = ranged(2, 0, 1024)
    """Threads per rank that read ahead; 0 reads when a batch is asked for."""
    max_broken: float = ranged(0.05, 0, 1)
    """The run stops when a larger share of the samples is broken (judged from 1,000 read on)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride and not self.window:
            raise InputError(f"data.stride is {self.stride}, but images are read whole; give data.window as well")
        if self.stride and self.window and self.stride > self.window:
            raise InputError(
                f"data.stride {self.stride} leaves pixels out between windows of {self.window}; give {self.window} at most"
            )

    def find(self, *, whole: bool = False) -> LabelledSet:
        """The set that is named, without the classes that are left out unless `whole`.

        Raises:
            InputError: there is no such set or class, or one class alone is left.
        """
        found = find_set(self.set, self.path)
        left = found.without(self.drop_classes)
        if len(left.classes) < min(2, len(found.classes)):
            raise InputError(
                f"data.drop_classes leaves {', '.join(left.classes)} alone of {', '.join(found.classes)}; two classes at least "
                f"must stay"
            )
        return found if whole else left
