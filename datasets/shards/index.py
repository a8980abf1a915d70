"""The index of a shard folder: `index.json` for the whole, beside each tar a `.npz` with its samples' places."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alliance.errors import InputError
from alliance.files import regular, replace_file
from alliance.sensors import Sensor
from datasets.imagery.scenes import Skipped
from datasets.sampling.moments import Moments

VERSION = 1
NAME = "index.json"


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
        replace_file(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Sidecar":
        """Read a sidecar; whatever is wrong with the file comes as OSError, ValueError, KeyError or BadZipFile."""
        with np.load(regular(path), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        record = json.loads(str(arrays["record"]))
        record["skipped"] = tuple(Skipped(*entry) for entry in record["skipped"])
        sensors = [name.removesuffix(".offset") for name in arrays if name.endswith(".offset")]
        places = {name: Places(*(arrays[f"{name}.{field}"] for field in Places._fields)) for name in sensors}
        moments = {name: Moments(*arrays[f"{name}.moments"]) for name in sensors}
        return cls(keys=arrays["keys"], places=places, moments=moments, **record)


class Shard(NamedTuple):
    """What the index says of one tar."""

    name: str
    samples: int
    bytes: int
    sha256: str

    def is_plain(self) -> bool:
        """Whether it names a file of the folder itself, with counts that may be relied on."""
        counts = isinstance(self.samples, int) and isinstance(self.bytes, int) and self.samples > 0
        return counts and isinstance(self.name, str) and Path(self.name).name == self.name


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

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.shards)

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
        return cls.parse(path.read_text(errors="replace"), str(path))

    @classmethod
    def parse(cls, text: str, where: str) -> "Index":
        """The index from the content of its file; `where` is said in errors.

        Raises:
            InputError: not an index, one this version does not know, or shards that are no plain file names.
        """
        try:
            record = json.loads(text)
            if record["version"] != VERSION:
                raise InputError(f"{where} has version {record['version']}, this code reads {VERSION}; make it anew")
            sensors = [Sensor.from_dict(entry, source=where) for entry in record["sensors"]]
            shards = tuple(Shard(**entry) for entry in record["shards"])
            astray = [shard for shard in shards if not shard.is_plain()]
            if astray or not shards:
                raise InputError(
                    f"{where} lists {astray[:1] or 'no shards'}; names of files and counts of samples belong there"
                )
            return cls(
                sensors={sensor.name: sensor for sensor in sensors},
                shapes={name: tuple(shape) for name, shape in record["shapes"].items()},
                shards=shards,
                statistics=record["statistics"],
                dropped=record["dropped"],
                skipped=tuple(Skipped(**entry) for entry in record["skipped"]),
                fingerprint=record["fingerprint"],
                forced=bool(record.get("forced", False)),
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{where} is damaged ({error!r}); run launch/shards.py again") from error


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
