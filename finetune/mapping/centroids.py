"""GeoParquet of the centres of patches and their features, written a few rows at a time; needs pyarrow."""

import importlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.files import new_file
from datasets.imagery.maps import Grid

POINT = struct.pack("<BI", 1, 1)  # little-endian well-known binary, a point
VERSION = "1.1.0"


class CentroidTable:
    """An open table of patches: row and column on their grid, the point of the centre, the features."""

    def __init__(self, arrow: Any, writer: Any, schema: Any, place: Affine) -> None:
        self.arrow, self.writer, self.schema, self.place = arrow, writer, schema, place
        self.count = 0

    def write(self, values: NDArray[np.float32], top: int, left: int) -> None:
        """Add the patches (f, h, w) whose first one stands at this row and column; those with NaN are left out."""
        rows, cols = np.nonzero(~np.isnan(values).any(axis=0))
        features = np.ascontiguousarray(values[:, rows, cols].T).ravel()
        rows, cols, place = rows + top, cols + left, self.place
        x = place.a * (cols + 0.5) + place.b * (rows + 0.5) + place.c
        y = place.d * (cols + 0.5) + place.e * (rows + 0.5) + place.f
        points = [POINT + struct.pack("<2d", *point) for point in zip(x, y, strict=True)]
        listed = self.arrow.FixedSizeListArray.from_arrays(self.arrow.array(features), len(values))
        columns = [self.arrow.array(rows.astype(np.int32)), self.arrow.array(cols.astype(np.int32))]
        columns += [self.arrow.array(points, self.arrow.binary()), listed]
        self.writer.write_table(self.arrow.Table.from_arrays(columns, schema=self.schema))
        self.count += len(rows)


def find_arrow() -> Any:
    """The package pyarrow.

    Raises:
        InputError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise InputError(f"--parquet needs pyarrow ({error}): pip install pyarrow, or leave --parquet out") from error


@contextmanager
def centroid_table(path: Path, grid: Grid, features: int) -> Iterator[CentroidTable]:
    """A GeoParquet file of the patches of a grid that appears, whole, when the block ends.

    Coordinates are those of the grid, or rows and columns of patches where it has no place.
    """
    arrow = find_arrow()
    crs = grid.crs.to_dict(projjson=True) if grid.crs and grid.transform else None
    column = {"encoding": "WKB", "geometry_types": ["Point"], "crs": crs}
    geo = {"version": VERSION, "primary_column": "geometry", "columns": {"geometry": column}}
    fields = [("row", arrow.int32()), ("column", arrow.int32()), ("geometry", arrow.binary())]
    schema = arrow.schema([*fields, ("features", arrow.list_(arrow.float32(), features))])
    schema = schema.with_metadata({"geo": json.dumps(geo)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as part, arrow.parquet.ParquetWriter(part, schema) as writer:
        yield CentroidTable(arrow, writer, schema, grid.transform or Affine.identity())
