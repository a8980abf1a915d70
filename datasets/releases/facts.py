"""Facts of the two public data sets that PAD is trained on: classes, colours, label values and published splits.

WHU-OPT-SAR: Li et al., "MCANet", JAG 106 (2022) 102638; github.com/AmberHen/WHU-OPT-SAR-dataset, no licence stated.
DDHR-SK: Ren et al., "DDHRNet", JAG 112 (2022) 102896; github.com/XD-MG/DDHRNet, no licence stated.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from datasets.imagery.labels import IGNORE, Colour


def _scenes(**sheets: str) -> tuple[str, ...]:
    """Map-sheet codes by prefix."""
    return tuple(prefix + number for prefix, numbers in sheets.items() for number in numbers.split())


WHU_CLASSES = {  # colours as the authors give them (issue 2 of their repository)
    "farmland": (204, 102, 0),
    "city": (255, 0, 0),
    "village": (255, 255, 0),
    "water": (0, 0, 255),
    "forest": (85, 167, 0),
    "road": (0, 255, 255),
    "others": (153, 102, 153),
}
# The release stores ten times the class number; copies that are divided by ten go around, and no value means two classes.
WHU_VALUES = {0: IGNORE, IGNORE: IGNORE}
WHU_VALUES |= {factor * (index + 1): index for factor in (1, 10) for index in range(len(WHU_CLASSES))}
WHU_SPLIT = {  # "The division of the dataset.txt"
    "train": _scenes(
        NH49E="001013 002014 004013 004021 005014 005023 005024 006011 006014 006017 006022 006024 007013 007017 007023 "
        "007024 008014 008017 008024 009012 009014 009023 009024 010014 010015 010016 010022 011011 011017 012009 012017 "
        "012018 012022 013007 013018 013021 013023 014007 014017 014021 014022 014024",
        NH50E="003001 006001 006007 007001 007003 007004 008003 009001 009003 009004 009006 010001 010003 010004 011002 "
        "011004 012001 012004 012005 012008 013001 013002 013005 016002",
        NI49E="021010 021011 021012 022010 022011 022013 022014 022015 023017 024013 024017 024018 024019 024020",
    ),
    "test": _scenes(
        NH49E="001014 001017 002012 002016 003014 003024 004011 005011 005019 006019 007014 008013 009017 010020 011024 "
        "012020 013010",
        NH50E="007002 011005 014003",
    ),
}
# Land labelled as water, says a user who looked (issue 24 of the repository); not confirmed by the authors.
WHU_DOUBTED = _scenes(
    NH49E="011024 013018 013021 013023 014007 014017 014021 014022",
    NH50E="007001 008003 013001 016002",
    NI49E="022015",
)
# Constants of PAD's public code, for its network's channels: the file's bands 3, 2, 1, then SAR three times.
RELEASED_OPTICAL = {"bands": (3, 2, 1), "mean": (80.475, 98.217, 106.364), "std": (29.48, 26.953, 24.829)}
RELEASED_SAR = {"bands": (1, 1, 1), "mean": (53.837,) * 3, "std": (48.475,) * 3}

DDHR_CLASSES = {  # order of Pohang as the authors give it (issue 1 of their repository); other code swaps 2 and 4
    "buildings": (255, 0, 0),
    "roads": (0, 0, 255),
    "farmland": (0, 255, 0),
    "water": (255, 0, 255),
    "greenery": (255, 255, 0),
}


@dataclass(frozen=True, kw_only=True)
class Release:
    """A data set as its authors give it away: three folders of scenes that are named alike."""

    name: str
    folders: Mapping[str, tuple[str, ...]]  # role -> names that its folder goes by
    scenes: int  # how many there should be
    classes: Mapping[str, Colour]
    values: Mapping[int, int]  # stored label -> class index or 255
    tile: int  # usual side, pixels
    shares: Mapping[str, float]  # of the splits, where tiles are drawn at random
    split: Mapping[str, tuple[str, ...]] | None = None  # the published one: scenes; None: it is in `lists`
    lists: Mapping[str, str] | None = None  # split -> published list file, lines of three paths
    doubted: tuple[str, ...] = ()  # scenes whose labels users doubt
    hint: str = ""  # why scenes are often missing


WHU_OPT_SAR = Release(
    name="whu-opt-sar",
    folders={"optical": ("optical", "opt", "image"), "sar": ("sar",), "label": ("lbl", "label", "labels")},
    scenes=100,
    classes=WHU_CLASSES,
    values=WHU_VALUES,
    tile=512,
    shares={"train": 0.8, "test": 0.2},
    split=WHU_SPLIT,
    doubted=WHU_DOUBTED,
    hint="the copy on Google Drive is known to hold about half of them",
)
DDHR_SK = Release(
    name="ddhr-sk",
    folders={"optical": ("GF2",), "sar": ("GF3",), "label": ("label",)},
    scenes=6173,
    classes=DDHR_CLASSES,
    values={IGNORE: IGNORE} | {index: index for index in range(len(DDHR_CLASSES))},
    tile=256,
    shares={"train": 0.5, "test": 0.5},
    lists={"train": "trainM_list.txt", "test": "valM_list.txt"},
)
