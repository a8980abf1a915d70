"""The sets of real images that there are tasks on, and which of their images are learnt from without labels.

No image that a task scores is among these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import rasterio
import torch

from alliance.encoder import AllianceEncoder
from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import find_sensor
from benchmarks.segmentation import ROOT
from benchmarks.yardsticks.chips import ChipTask, image_of
from benchmarks.yardsticks.dense import DenseTask, Parts, Pieces, Question
from benchmarks.yardsticks.scoring import Answers
from datasets.chips.chip import ChipSet
from datasets.imagery.labels import IGNORE
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Cut, Sample, Tiles
from finetune.probing.dense import of_sensor

HALF = 112  # pixels, of the width of a TerraMesh tile
TERRAMESH = {"optical": ("sentinel2-l2a", "S2L2A"), "sar": ("sentinel1-rtc-db", "S1RTC")}  # sensor and folder
BLOCK = 16  # pixels, of the scene of Indian Pines
FEWEST = 20  # labelled pixels of a class on either side of its split, below which it is left out
ONE = {"unit": "normalised brightness", "scale": 1 / 255}  # of pictures
PICTURES = (
    Sensor(name="false-colour", dtypes=("uint8",), bands=(  # as the colours look; which bands they are is not stated
        Band(name="B11", aliases=("R",), wavelength=1613.7, bandwidth=91, **ONE),
        Band(name="B08", aliases=("G",), wavelength=832.8, bandwidth=106, **ONE),
        Band(name="B02", aliases=("B",), wavelength=492.4, bandwidth=66, **ONE))),
    Sensor(name="backscatter-picture", dtypes=("uint8",), bands=(Band(name="VV", modality="sar-vv", **ONE),)),
)  # fmt: skip
AVIRIS = find_sensor(str(ROOT / "configs/sensors/aviris-indian-pines.yaml"))
SENSORS = {sensor.name: sensor for sensor in (*PICTURES, AVIRIS)}
OMBRIA = {
    "optical_before": "false-colour",
    "optical": "false-colour",
    "sar_before": "backscatter-picture",
    "sar": "backscatter-picture",
}


Open = Callable[[Path, Mapping[str, Sensor]], Parts]
Unlabelled = Callable[[Path, Path], Mapping[str, Sequence[Path]]]


class Task(Protocol):
    """What is scored on a set of images."""

    def answers(
        self, folder: Path, encoders: Mapping[str, AllianceEncoder], sensors: Mapping[str, Sensor], seeds: Sequence[int]
    ) -> list[Answers]:
        """Records of questions: their task, measure, sizes and rows.

        Args:
            encoders: by the row that they make, beside those without one.
            sensors: with statistics of the images that are learnt from, by name.
            seeds: of draws of labels.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Imagery:
    """A set of images, and the tasks on it."""

    name: str  # also of its folder
    unlabelled: Unlabelled  # of set and scratch folder: files by sensor
    tasks: tuple[Task, ...]
    patch: int
    tile: int = 64

    def sensor(self, name: str) -> Sensor:
        """One of its sensors, without statistics."""
        return SENSORS.get(name) or find_sensor(name)


def described(name: str, splits: Mapping[str, str], cut: Cut | None, every: int = 1) -> Open:
    """Opens a set of configs/labelled.

    Args:
        splits: of what is learnt from and what is scored, by train and test.
        cut: of its images into pieces.
        every: of the pieces that are learnt from, so that one of so many is read.
    """

    def opened(folder: Path, sensors: Mapping[str, Sensor]) -> Parts:
        known = find_set(name, folder).only({role: role for role in sensors})
        known = known.with_images(**{role: of_sensor(known.image(role), sensor) for role, sensor in sensors.items()})
        train, test = (Tiles(known, splits[part], cut=cut) for part in ("train", "test"))
        return Parts(
            pieces_of(train, range(len(train))[::every]), pieces_of(test, range(len(test))), len(known.classes)
        )

    return opened


def pieces_of(tiles: Tiles, numbers: Sequence[int]) -> Pieces:
    """Some of the tiles, each window counted to its image."""
    return Pieces(len(numbers), lambda at: tiles[numbers[at]], [tiles.files[number].key for number in numbers])


def by_window(parts: Parts) -> Parts:
    """The same, where so few images are scored that their windows are drawn anew for an interval."""
    return parts._replace(test=parts.test._replace(units=[f"{unit} {at}" for at, unit in enumerate(parts.test.units)]))


def images_of(name: str, split: str, roles: Mapping[str, str]) -> Unlabelled:
    """The images of a split of a set of configs/labelled, by the sensor of their role."""

    def listed(folder: Path, _: Path) -> Mapping[str, Sequence[Path]]:
        files = Tiles(find_set(name, folder).only({role: role for role in roles}), split).files
        sensors = dict.fromkeys(roles.values())
        return {s: [each.paths[role] for role, own in roles.items() if own == s for each in files] for s in sensors}

    return listed


def chips_of(task: ChipTask, *, folders: bool = False) -> Unlabelled:
    """The images that a task learns from; `folders`: those that hold the files of their bands."""

    def listed(folder: Path, _: Path) -> Mapping[str, Sequence[Path]]:
        files = [chip.files[0] for chip in task.parts(folder)["train"]]
        return {task.sensor: [file.parent for file in files] if folders else files}

    return listed


def sites_of_oscd(folder: Path, _: Path) -> Mapping[str, Sequence[Path]]:
    """Both dates of every place but those that are scored."""
    held = find_set("oscd").splits["held_out"]
    return {
        "sentinel2-l1c": [path for path in sorted(folder.glob("*_t[12].tif")) if path.stem[:-3] not in (held or ())]
    }


def open_oscd(folder: Path, sensors: Mapping[str, Sensor]) -> Parts:
    """Windows of the sites with maps of change."""
    return by_window(described("oscd", {"train": "train_part", "test": "held_out"}, Cut(56))(folder, sensors))


def open_terramesh(folder: Path, sensors: Mapping[str, Sensor]) -> Parts:
    """Windows of the left halves of all tiles to learn from, of the right ones to score: the tiles have not the same classes."""
    known = find_set("terramesh-sentinel", folder)
    known = known.with_images(**{role: of_sensor(known.image(role), sensor) for role, sensor in sensors.items()})
    listed = [name for names in known.splits.values() for name in names or ()]
    tiles = Tiles(replace(known, splits={"all": listed}), "all", cut=Cut(56))
    left = [number for number, box in enumerate(tiles.boxes) if box is not None and box.col < HALF]
    right = sorted({*range(len(tiles))} - {*left})
    return by_window(Parts(pieces_of(tiles, left), pieces_of(tiles, right), len(known.classes)))


def halves_of_terramesh(folder: Path, scratch: Path) -> Mapping[str, Sequence[Path]]:
    """The left halves of the tiles, written anew."""
    found = {}
    for sensor, part in TERRAMESH.values():
        (scratch / part).mkdir(parents=True, exist_ok=True)
        found[sensor] = []
        for path in sorted((folder / part).glob("*.tif")):
            with rasterio.open(path) as file:
                profile, bands = file.profile | {"width": HALF}, file.descriptions
                image = file.read()[..., :HALF]
            found[sensor].append(scratch / part / path.name)
            with rasterio.open(found[sensor][-1], "w", **profile) as target:
                target.write(image)
                target.descriptions = bands
    return found


def blocks_of_pines(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Image (200, 16, 16) and labels (16, 16) of blocks, row by row; classes from 0, those with few pixels without label."""
    with np.load(folder / "indian_pines.npz") as file:
        image, labels = file["image"], file["labels"].astype(np.int64)
    count = labels.shape[0] // BLOCK
    corners = [(BLOCK * row, BLOCK * col) for row in range(count) for col in range(count)]
    cut = [labels[y : y + BLOCK, x : x + BLOCK] for y, x in corners]
    sides = [np.bincount(np.concatenate([each.ravel() for each in cut[side::2]]), minlength=17) for side in (0, 1)]
    kept = [number for number in range(1, 17) if min(each[number] for each in sides) >= FEWEST]
    table = np.full(17, IGNORE)
    table[kept] = np.arange(len(kept))
    return [image[y : y + BLOCK, x : x + BLOCK].transpose(2, 0, 1) for y, x in corners], [table[each] for each in cut]


def unlabelled_pines(folder: Path, scratch: Path) -> Mapping[str, Sequence[Path]]:
    """The blocks that are learnt from, as arrays: every second one."""
    scratch.mkdir(parents=True, exist_ok=True)
    files = []
    for number, image in enumerate(blocks_of_pines(folder)[0][0::2]):
        files.append(scratch / f"block_{number}.npy")
        np.save(files[-1], image)
    return {AVIRIS.name: files}


def open_pines(folder: Path, sensors: Mapping[str, Sensor]) -> Parts:
    """Every second block to learn from, the others to score."""
    images, labels = blocks_of_pines(folder)
    (role,) = sensors

    def pieces(side: int) -> Pieces:
        numbers = range(len(images))[side::2]

        def read(number: int) -> Sample:
            image = sensors[role].to_physical(torch.from_numpy(images[numbers[number]].astype(np.float32)))
            return Sample({role: image}, torch.from_numpy(labels[numbers[number]]))

        return Pieces(len(numbers), read, [str(number) for number in numbers])

    classes = len(set(np.concatenate(labels).ravel().tolist()) - {IGNORE})
    return Parts(pieces(0), pieces(1), classes)


EUROSAT = ChipTask(title="EuroSAT, RGB: scene", sensor="rgb-uint8", size=64, per_class=(10, 75), draws=5,
                   readouts=("groups", "cls"), probes=("linear", "knn"), data=ChipSet(path=".", image=image_of("rgb-uint8")))  # fmt: skip
RESISC = replace(EUROSAT, title="RESISC, 12 classes: scene", size=128, per_class=(5, 20))
BIGEARTHNET = ChipTask(title="BigEarthNet, Sentinel-2: several labels", sensor="sentinel2-l2a", size=120, several=True,
                       data=ChipSet(path=".", labels="bigearthnet", image=image_of("sentinel2-l2a")))  # fmt: skip
DUBAI = ChipTask(title="Dubai: several labels", sensor="rgb-uint8", size=128, several=True, share=0.5,
                 data=ChipSet(labels="masks", set="dubai", window=128, image=image_of("rgb-uint8")))  # fmt: skip
FLOODS = (
    Question("OMBRIA: flood from S1", ("sar",)),
    Question("OMBRIA: flood from S2", ("optical",)),
    Question("OMBRIA: flood from S1 and S2", ("sar", "optical")),
    Question("OMBRIA: change, S2 before and after", ("optical_before", "optical"), True, "F1 of change"),
    Question("OMBRIA: change, S1 before and after", ("sar_before", "sar"), True, "F1 of change"),
    Question("OMBRIA: change, S2 before, S1 after", ("optical_before", "sar"), True, "F1 of change"),
)
SITES = Question("OSCD: change", ("before", "after"), True, "F1 of change")
PINES = Question("Indian Pines: pixels", ("passive",), measured="OA")
COVER = (
    Question("TerraMesh: land cover from S2", ("optical",)),
    Question("TerraMesh: land cover from S1 and S2", ("optical", "sar")),
)
HALVES = {"train": "train", "test": "test"}
SETS = (
    Imagery(name="eurosat_rgb", unlabelled=chips_of(EUROSAT), tasks=(EUROSAT,), patch=8),
    Imagery(name="resisc12", unlabelled=chips_of(RESISC), tasks=(RESISC,), patch=8, tile=128),
    Imagery(
        name="dubai", patch=8, tile=128, unlabelled=images_of("dubai", "train", {"optical": "rgb-uint8"}),
        tasks=(
            DenseTask(questions=(Question("Dubai: segmentation", ("optical",)),), sensors={"optical": "rgb-uint8"},
                      open=described("dubai", HALVES, Cut(256)), patch=8),
            DUBAI,
        ),
    ),
    Imagery(name="bigearthnet", unlabelled=chips_of(BIGEARTHNET, folders=True), tasks=(BIGEARTHNET,), patch=8),
    Imagery(
        name="ombria_flood", patch=4, unlabelled=images_of("ombria-flood", "train", OMBRIA),
        tasks=(DenseTask(questions=FLOODS, sensors=OMBRIA, open=described("ombria-flood", HALVES, None, every=2), patch=4),),
    ),
    Imagery(
        name="oscd", patch=4, tile=56, unlabelled=sites_of_oscd,
        tasks=(DenseTask(questions=(SITES,), sensors=dict.fromkeys(SITES.roles, "sentinel2-l1c"), open=open_oscd, patch=4),),
    ),
    Imagery(
        name="indian_pines", patch=2, tile=BLOCK, unlabelled=unlabelled_pines,
        tasks=(DenseTask(questions=(PINES,), sensors={"passive": AVIRIS.name}, open=open_pines, patch=2, per_class=20),),
    ),
    Imagery(
        name="terramesh_tiles", patch=4, tile=56, unlabelled=halves_of_terramesh,
        tasks=(DenseTask(questions=COVER, sensors={role: name for role, (name, _) in TERRAMESH.items()}, open=open_terramesh,
                         patch=4),),
    ),
)  # fmt: skip
