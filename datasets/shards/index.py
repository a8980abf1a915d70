"""The index of a shard folder: `index.json` for the whole, beside each tar a `.npz` with its samples' places."""

import hashlib
import io
import json
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alliance.errors import InputError
from alliance.files import regular, replace_file
from alliance.json_files import MAX_BYTES, parse_json
from alliance.records import from_record, shown
from alliance.sensors import Sensor
from alliance.yaml_files import read_text
from datasets.imagery.scenes import Skipped
from datasets.sampling.moments import FIGURES, Moments

VERSION = 1
NAME = "index.json"
NUMBER = re.compile(rb"[<>|=][iu][1248]|[<>=]f[248]")  # dtypes of pixels
Content = bytes  # which is a number of them in what follows
NEAR = 1e-6  # relative, of statistics that are the same but for rounding
DAMAGED = (
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class Places(NamedTuple):
    """Where one sensor's arrays lie in a tar, one entry per sample."""

    offset: np.ndarray  # int64, first byte of the array's data, behind the tar and npy headers
    dtype: np.ndarray  # bytes such as b"<u2"
    crc32: np.ndarray  # uint32, of the data


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """One shard: its samples' keys and places, its statistics, and what was left out of it."""

    keys: np.ndarray  # utf-8 bytes
    places: dict[str, Places]  # by sensor
    moments: dict[str, Moments]
    bytes: int = 0
    sha256: str = ""
    fingerprint: str = ""
    dropped: int = 0  # tiles with too many missing values
    skipped: tuple[Skipped, ...] = ()

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        record = {
            "bytes": self.bytes,
            "sha256": self.sha256,
            "fingerprint": self.fingerprint,
            "dropped": self.dropped,
            "skipped": self.skipped,
        }
        arrays: dict[str, np.ndarray] = {"keys": self.keys, "record": np.array(json.dumps(record))}
        for name, places in self.places.items():
            arrays |= {f"{name}.{field}": array for field, array in places._asdict().items()}
            arrays[f"{name}.moments"] = self.moments[name].to_array()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        replace_file(path, buffer.getvalue(), crowded=True)

    @classmethod
    def load(cls, path: Path) -> "Sidecar":
        """Read a sidecar.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged, or none of ours.
        """
        return cls.parse(regular(path).read_bytes(), str(path))

    @classmethod
    def parse(cls, content: Content, where: str) -> "Sidecar":
        """The sidecar from the content of its file; `where` is said in errors.

        Raises:
            ValueError: it is damaged, or none of ours.
        """
        arrays = _read_arrays(content, where)
        if not {"keys", "record"} <= set(arrays):
            raise ValueError(f"{where} holds {shown(sorted(arrays))}")
        keys = arrays["keys"]
        notes = from_record(_Notes, parse_json(str(arrays["record"]), where), where)
        sensors = [name.removesuffix(".offset") for name in arrays if name.endswith(".offset")]
        places = {name: _places(arrays, name, len(keys) if keys.ndim == 1 else -1) for name in sensors}
        moments = {name: _moments(arrays, name) for name in sensors}
        if keys.dtype.kind != "S" or (len(keys) and not sensors):
            raise ValueError(f"{where} holds keys of {keys.dtype} and {len(sensors)} sensors")
        return cls(keys=keys, places=places, moments=moments, **notes._asdict())


class _Notes(NamedTuple):
    """What a sidecar keeps as JSON."""

    bytes: int
    sha256: str
    fingerprint: str
    dropped: int
    skipped: tuple[Skipped, ...]


def _read_arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz that is not compressed, so that it is no larger than its file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError(f"{where} is compressed")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except DAMAGED as error:
        raise ValueError(f"{where} cannot be read ({type(error).__name__}: {error})") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError(f"{where} holds files that are no arrays")
    return arrays


def _places(arrays: Mapping[str, np.ndarray], sensor: str, samples: int) -> Places:
    columns = {field: arrays.get(f"{sensor}.{field}", np.zeros(0)) for field in Places._fields}
    for field, kinds in (("offset", "iu"), ("dtype", "S"), ("crc32", "iu")):
        if columns[field].shape != (samples,) or (samples and columns[field].dtype.kind not in kinds):
            raise ValueError(
                f"{sensor}.{field} is {columns[field].dtype} of {columns[field].shape} for {samples} samples"
            )
    for code in set(columns["dtype"].tolist()):
        if not NUMBER.fullmatch(code):
            raise ValueError(f"{sensor}.dtype holds {shown(code)}, which is no number of a pixel")
    return Places(**columns)


def _moments(arrays: Mapping[str, np.ndarray], sensor: str) -> Moments:
    table = arrays.get(f"{sensor}.moments", np.zeros(0))
    if table.ndim != 2 or len(table) != 5 or table.dtype != np.float64:
        raise ValueError(f"{sensor}.moments is {table.dtype} of {table.shape}")
    return Moments(*table)


class Shard(NamedTuple):
    """What the index says of one tar."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def is_plain(self) -> bool:
        """Whether it names a file of the folder itself, with counts that may be relied on."""
        named = Path(self.name).name == self.name and self.name not in ("", "..") and "\0" not in self.name
        return named and self.samples > 0 and self.bytes >= 0


@dataclass(frozen=True, kw_only=True)
class Index:
    """The whole folder. Small whatever the number of samples: a line per shard, no line per sample."""

    sensors: dict[str, Sensor]  # with the measured mean and std
    shapes: dict[str, tuple[int, int, int]]  # tile shape of each sensor
    shards: tuple[Shard, ...]
    statistics: dict[str, dict[str, list[float]]]
    dropped: int = 0
    skipped: tuple[Skipped, ...] = ()
    fingerprint: str = ""
    forced: bool = False  # some numbers are not what their sensor says, and were taken all the same
    foreign: bool = False  # the tars are of others, and are read in place

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def digest(self) -> str:
        """One checksum of all shards, in their order."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it into the folder of the shards, whole or not at all."""
        record = {
            "version": VERSION,
            "samples": self.samples,
            "dropped": self.dropped,
            "sensors": [sensor.to_dict() for sensor in self.sensors.values()],
            "shapes": self.shapes,
            "statistics": self.statistics,
            "shards": [shard._asdict() for shard in self.shards],
            "skipped": [entry._asdict() for entry in self.skipped],
            "fingerprint": self.fingerprint,
            "forced": self.forced,
            "foreign": self.foreign,
        }
        replace_file(folder / NAME, (json.dumps(record, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Read a folder's index.

        Raises:
            InputError: no folder, no index, or one this version does not know.
        """
        path = folder / NAME
        if not folder.is_dir():
            raise InputError(f"no shard folder {folder}; make one with: python launch/shards.py SCENES --out {folder}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no regular file; put the index in its place")
        if not path.exists():
            command = f"python launch/shards.py --index {folder} --sensor NAME"
            raise InputError(f"{folder} has no {NAME}; finish making it, or index WebDataset tars once with: {command}")
        return cls.parse(read_text(path, limit=MAX_BYTES), str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> "Index":
        """The index from the content of its file; `where` is said in errors.

        Raises:
            InputError: not an index, one this version does not know, or shards that are no plain file names.
        """
        try:
            record = parse_json(text, "its text")
            version = record.get("version", VERSION) if isinstance(record, dict) else VERSION
            if version is True or version != VERSION:
                raise InputError(f"it has version {shown(version)}, this code reads {VERSION}")
            stored = from_record(_Stored, record, "it")._asdict()
            sensors = [Sensor.from_dict(entry, source="its sensors") for entry in stored["sensors"]]
            own: dict[str, Any] = {name: value for name, value in stored.items() if name not in ("version", "samples")}
            own["sensors"] = {sensor.name: sensor for sensor in sensors}
            index = cls(**own)
            index.check()
        except InputError as error:
            raise InputError(
                f"{where} is damaged ({error}); give the launch/shards.py command that made it again: good shards are kept"
            ) from error
        return index

    def check(self) -> None:
        """Refuse entries that do not fit each other.

        Raises:
            InputError: shards that are no plain file names or counts, or shapes or statistics of other bands.
        """
        astray = [shard for shard in self.shards if not shard.is_plain()]
        if astray or not self.shards:
            raise InputError(f"it lists {astray[:1] or 'no shards'}; names of files and counts of samples belong there")
        if not set(self.sensors) == set(self.shapes) == set(self.statistics):
            raise InputError("its sensors, shapes and statistics are not of the same names")
        for name, sensor in self.sensors.items():
            shape, figures = self.shapes[name], self.statistics[name]
            if shape[0] != len(sensor.bands) or min(shape) < 1:
                raise InputError(f"shape {shape} is not one of sensor {name} with {len(sensor.bands)} bands")
            if set(figures) != set(FIGURES) or any(len(column) != shape[0] for column in figures.values()):
                raise InputError(f"statistics of {name} are not {', '.join(FIGURES)} of {shape[0]} bands")
            _check_figures(sensor, figures)
        pixels = sum(math.prod(shape) for shape in self.shapes.values())
        for shard in self.shards:
            if shard.samples * pixels > shard.bytes:
                raise InputError(
                    f"{shard.name} has {shard.bytes} bytes, {shard.samples} samples of {pixels} numbers do not fit into it"
                )


class _Stored(NamedTuple):
    """What the file of an index holds."""

    version: int
    sensors: list[Any]
    shapes: dict[str, tuple[int, int, int]]
    statistics: dict[str, dict[str, list[float]]]
    shards: tuple[Shard, ...]
    dropped: int
    skipped: tuple[Skipped, ...]
    fingerprint: str
    samples: int = 0
    forced: bool = False
    foreign: bool = False


def _check_figures(sensor: Sensor, figures: Mapping[str, Sequence[float]]) -> None:
    """Refuse statistics that no numbers can have, or that are not those of the sensor.

    Raises:
        InputError: a mean outside of the extremes, a deviation above half their distance, or such.
    """
    for place, band in enumerate(sensor.bands):
        count, mean, std, low, high = (figures[name][place] for name in FIGURES)
        slack = NEAR * max(abs(low), abs(high))
        if count <= 0 or not low - slack <= mean <= high + slack or not 0 <= std <= (high - low) / 2 + slack:
            raise InputError(
                f"statistics of {sensor.name}, band {band.name}, are none of any numbers: count {count:g}, mean {mean:g}, "
                f"std {std:g}, min {low:g}, max {high:g}"
            )
        for name, own, measured in (("mean", band.mean, mean), ("std", band.std, std or 1.0)):
            if own is not None and not math.isclose(own, measured, rel_tol=NEAR, abs_tol=NEAR * slack):
                raise InputError(
                    f"sensor {sensor.name}, band {band.name}, has {name} {own:g}, measured is {measured:g}"
                )


def collect(
    tars: Sequence[Path],
    sensors: Mapping[str, Sensor],
    shapes: Mapping[str, tuple[int, int, int]],
    skipped: Sequence[Skipped] = (),
) -> Index:
    """The index of finished shards, in their order; a shard without samples has no tar and no line.

    Raises:
        InputError: no samples at all, or a band that is missing everywhere.
    """
    shards, moments = [], {name: Moments.empty(shape[0]) for name, shape in shapes.items()}
    left_out, dropped, fingerprint = list(skipped), 0, ""
    for tar in tars:
        sidecar = Sidecar.load(tar.with_suffix(".npz"))
        fingerprint = sidecar.fingerprint
        dropped += sidecar.dropped
        left_out.extend(sidecar.skipped)
        if len(sidecar.keys):
            shards.append(Shard(tar.name, len(sidecar.keys), sidecar.bytes, sidecar.sha256))
            moments = {name: merged.merge(sidecar.moments[name]) for name, merged in moments.items()}
    left_out = list(dict.fromkeys(left_out))
    if not shards:
        nodata = ", ".join(f"{sensor.nodata} of {sensor.name}" for sensor in sensors.values())
        reasons = [
            f"all {dropped} tiles have more pixels that miss a band than --max-missing allows; correct nodata ({nodata}), "
            f"or raise it to 1 to see which band is missing everywhere"
        ] * bool(dropped)
        reasons += [f"{file}: {reason}" for file, reason in left_out[:3]]
        raise InputError(f"no sample could be made: {'; '.join(reasons)}")
    return Index(
        sensors={name: _measured(sensor, moments[name]) for name, sensor in sensors.items()},
        shapes=dict(shapes),
        shards=tuple(shards),
        statistics={name: merged.to_dict() for name, merged in moments.items()},
        dropped=dropped,
        skipped=tuple(left_out),
        fingerprint=fingerprint,
    )


def _measured(sensor: Sensor, moments: Moments) -> Sensor:
    absent = [name for name, count in zip(sensor.band_names, moments.count, strict=True) if count == 0]
    if absent:
        raise InputError(
            f"sensor {sensor.name}: {', '.join(absent)} missing in every tile (nodata {sensor.nodata}); "
            f"leave the band out of a sensor file of your own, or correct its nodata"
        )
    std = np.where(moments.std > 0, moments.std, 1.0)  # a constant band is zero whatever it is divided by
    return sensor.with_statistics(moments.mean.tolist(), std.tolist())
