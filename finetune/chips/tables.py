"""Labels of images as a table and as footprints on the ground."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform

from alliance.files import replace_file
from datasets.imagery.grids import corners
from datasets.imagery.scenes import Scene
from finetune.chips.scores import label_names, probability_row

LONGITUDES = "EPSG:4326"


class Line(NamedTuple):
    """What is said of one image."""

    file: str
    chances: NDArray[np.float64]  # (k,)
    beside: Mapping[str, str] = MappingProxyType({})  # further columns, before the probabilities


def write_labels(path: Path, lines: Iterable[Line], classes: Sequence[str], *, several: bool) -> None:
    """Write a CSV, whole or not at all: file, label (several with ; between them), p_CLASS."""
    rows = [
        {"file": line.file, "label": _label(line, classes, several), **line.beside}
        | {f"p_{name}": text for name, text in probability_row(line.chances, classes).items()}
        for line in lines
    ]
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.getvalue().encode())


def write_footprints(path: Path, lines: Iterable[tuple[Line, Scene]], classes: Sequence[str], *, several: bool) -> int:
    """Write a GeoJSON with the footprint of every image that says where it lies; how many these are."""
    features = []
    for line, header in lines:
        ring = footprint(header)
        if ring is not None:
            chances = {name: float(text) for name, text in probability_row(line.chances, classes).items()}
            told = {"file": line.file, "label": _label(line, classes, several), "probabilities": chances}
            geometry = {"type": "Polygon", "coordinates": [ring]}
            features.append({"type": "Feature", "properties": told, "geometry": geometry})
    path.parent.mkdir(parents=True, exist_ok=True)
    collection: dict[str, Any] = {"type": "FeatureCollection", "features": features}
    replace_file(path, json.dumps(collection, allow_nan=False).encode())
    return len(features)


def footprint(header: Scene) -> list[list[float]] | None:
    """Longitude and latitude of an image's corners, anticlockwise and closed; None: it does not say where it lies."""
    if header.crs is None or header.transform is None:
        return None
    places = corners(header)[[0, 2, 3, 1]]  # upper left, lower left, lower right, upper right
    x, y = transform(CRS.from_user_input(header.crs), CRS.from_user_input(LONGITUDES), *places.T.tolist())[:2]
    if not np.isfinite([x, y]).all():
        return None
    ring = [[round(lon, 9), round(lat, 9)] for lon, lat in zip(x, y, strict=True)]
    doubled = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
    ring = ring if doubled > 0 else ring[::-1]
    return [*ring, ring[0]]


def _label(line: Line, classes: Sequence[str], several: bool) -> str:
    return ";".join(label_names(line.chances, classes, several=several))
