"""Where images lie: their corners, the size of their pixels, and whether several lie on one grid."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from rasterio.crs import CRS
from rasterio.warp import transform

from datasets.imagery.scenes import Points, Unreadable

TOLERANCE = 0.5  # of the finer pixel


class Placed(Protocol):
    """What is asked of an image: a `Scene`, or anything that has its place."""

    @property
    def shape(self) -> tuple[int, int, int]: ...  # (c, h, w)
    @property
    def crs(self) -> str | None: ...
    @property
    def transform(self) -> tuple[float, ...] | None: ...  # a b c d e f
    @property
    def points(self) -> Points | None: ...  # of an image without a transform


def corners(scene: Placed) -> np.ndarray:
    """Map coordinates of the image's corners (first row: its first column, its end; last row), (4, 2).

    Those of the unit square without a transform.
    """
    _, height, width = scene.shape
    a, b, c, d, e, f = scene.transform or (1 / width, 0, 0, 0, 1 / height, 0)
    ends = [(col, row) for row in (0, height) for col in (0, width)]
    return np.array([(a * col + b * row + c, d * col + e * row + f) for col, row in ends])


def pixel_size(scene: Placed) -> float:
    """Length of a pixel's shorter side in map units."""
    a, b, _, d, e, _ = scene.transform or (1, 0, 0, 0, 1, 0)
    return min(float(np.hypot(a, d)), float(np.hypot(b, e)))


def compare_grids(first: Placed, second: Placed, tolerance: float = TOLERANCE) -> None:
    """See that two images cover the same ground; their pixels may differ in size.

    Coordinate systems are compared by where they put the corners, not by how they are spelled. Images that points place
    must have the same ones. Images without a place are not compared: of them the file tells nothing.

    Args:
        tolerance: how far apart corners may lie, in pixels of the finer image.
    Raises:
        Unreadable: they lie elsewhere, with the distance and the mend.
    """
    if first.transform is None or second.transform is None:
        _compare_points(first, second)
        return
    ours, theirs = corners(first), _corners_like(first, second)
    pixel = min(_side(ours, first.shape), _side(theirs, second.shape))
    apart = np.abs(theirs - ours).max(axis=1)
    if apart.max() <= tolerance * pixel:
        return
    rows_turned = np.abs(theirs[[2, 3, 0, 1]] - ours).max() <= tolerance * pixel
    worst = int(apart.argmax())
    places = " and ".join(f"({x:.10g}, {y:.10g})" for x, y in (ours[worst], theirs[worst]))
    mend = "its rows run the other way; turn one with gdalwarp" if rows_turned else "resample one onto the other's grid"
    raise Unreadable(
        f"footprints differ by {apart[worst]:.6g} map units, {apart[worst] / pixel:.4g} pixels: a corner is at {places}"
        f"{_systems(first, second)}; {mend}"
    )


def one_footprint(scenes: Sequence[Placed]) -> bool:
    """Whether all images cover the ground of the first, as far as the files tell."""
    first = scenes[0]
    try:
        for scene in scenes[1:]:
            compare_grids(first, scene)
    except Unreadable:
        return False
    return all((scene.transform is None) == (first.transform is None) for scene in scenes)


def _compare_points(first: Placed, second: Placed) -> None:
    """Of two images that points place: the same places of the image lie within a pixel of each other.

    Raises:
        Unreadable: they do not, or only one is placed so and the other by a grid; with the commands that mend it.
    """
    if any(one.points is None and one.transform is None for one in (first, second)) or _same_points(first, second):
        return
    west, south, east, north = _extent(first)
    crs = first.points.crs if first.points else first.crs
    commands = [
        f"gdalwarp {scene.points.warp} -t_srs {crs or 'CRS'} -te {west:.10g} {south:.10g} {east:.10g} {north:.10g} "
        f"-ts {scene.shape[2]} {scene.shape[1]} -dstnodata N {name} {name}.tif"
        for scene, name in ((first, "FIRST"), (second, "SECOND"))
        if scene.points
    ]
    found = " and ".join(scene.points.kind if scene.points else "a transform" for scene in (first, second))
    raise Unreadable(
        f"the places of the two, by {found}, differ or are not to be compared; put both on one grid, N a value that is no "
        f"measurement: {'; '.join(commands)}"
    )


def _same_points(first: Placed, second: Placed) -> bool:
    """Whether two images have points at the same places of the image, which lie at the same places of the ground."""
    ours, theirs = first.points, second.points
    if ours is None or theirs is None or len(ours.places) != len(theirs.places) or not _same_system(ours, theirs):
        return False
    tables = [np.array(points.places, dtype=np.float64) for points in (ours, theirs)]
    finest = np.max([first.shape[1:], second.shape[1:]], axis=0)
    for table, scene in zip(tables, (first, second), strict=True):
        table[:, :2] *= finest / scene.shape[1:]  # rows and columns of the finer image
    ones = np.ones((len(tables[0]), 1))
    steps = np.linalg.lstsq(np.hstack([tables[0][:, :2], ones]), tables[0][:, 2:], rcond=None)[0][:2]
    apart = np.abs(tables[0] - tables[1]).max(axis=0)
    return bool(apart[:2].max() <= 1 and apart[2:].max() <= np.hypot(*steps.T).min())


def _same_system(first: Points, second: Points) -> bool:
    if not first.crs or not second.crs or first.crs == second.crs:
        return True
    return CRS.from_user_input(first.crs) == CRS.from_user_input(second.crs)


def _extent(scene: Placed) -> tuple[float, float, float, float]:
    """West, south, east and north end of an image that has a place."""
    places = np.array([place[2:] for place in scene.points.places]) if scene.points else corners(scene)
    (west, south), (east, north) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
    return west, south, east, north


def _corners_like(first: Placed, second: Placed) -> np.ndarray:
    """Corners of the second image in the coordinates of the first."""
    places = corners(second)
    if not first.crs or not second.crs or first.crs == second.crs:
        return places
    systems = [CRS.from_user_input(crs) for crs in (first.crs, second.crs)]
    if systems[0] == systems[1]:
        return places
    try:
        moved = transform(systems[1], systems[0], *places.T.tolist())
    except Exception as error:  # GDAL's own errors, which rasterio gives no public name
        raise Unreadable(f"cannot be compared{_systems(first, second)}; reproject one of them") from error
    if not np.isfinite(moved[:2]).all():
        raise Unreadable(f"cannot be compared{_systems(first, second)}; reproject one of them")
    return np.array(moved[:2]).T


def _side(places: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Length of a pixel's shorter side between these corners."""
    _, height, width = shape
    return min(float(np.hypot(*(places[1] - places[0]))) / width, float(np.hypot(*(places[2] - places[0]))) / height)


def _systems(first: Placed, second: Placed) -> str:
    """The coordinate systems, where both are known and spelled in two ways."""
    if not first.crs or not second.crs or first.crs == second.crs:
        return ""
    return f", CRS {' and '.join(crs if len(crs) < 60 else f'{crs[:56]} ...' for crs in (first.crs, second.crs))}"
