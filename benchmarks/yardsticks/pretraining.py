"""An encoder that learns from some images for some minutes, by the commands that users have."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from alliance.sensors import Sensor
from alliance.sensors.catalog import sensor_names
from benchmarks.segmentation import ROOT, call
from engine.log import read_metrics

CONFIG = ROOT / "configs/pretrain/nano.yaml"
TRIAL = 16  # steps, by which the time of one is told
BATCH = 16


class Images(NamedTuple):
    """What is learnt from, without labels."""

    files: Mapping[str, Sequence[Path]]  # files or folders, by the name of their sensor
    sensors: Mapping[str, Sensor]  # by name
    tile: int  # pixels
    patch: int


class Pretrained(NamedTuple):
    """An encoder, and what it took."""

    path: Path
    steps: int
    seconds: float


def pretrain(images: Images, minutes: float, folder: Path) -> Pretrained:
    """A nano encoder trained for about some minutes on one core; one that stands in the folder is taken as it is.

    Args:
        folder: for shards and runs; what stands there already is gone on with.
    """
    record, run = folder / "pretrained.json", folder / "run"
    if record.exists():
        return Pretrained(run / "encoder", **json.loads(record.read_text()))
    sources, trial = make_shards(images, folder), folder / "trial"
    if not (trial / "encoder").exists():
        _run(trial, sources, images, TRIAL, ["--run.resume", "auto"])
    speed = [each["samples_per_s"] for each in read_metrics(trial / "metrics.jsonl") if "samples_per_s" in each][-1]
    began = time.perf_counter()
    steps = max(round(60 * minutes * speed / BATCH), 2)
    _run(run, sources, images, steps, ["--run.resume", "auto"])
    found = {"steps": steps, "seconds": round(time.perf_counter() - began, 1)}
    record.write_text(json.dumps(found))
    return Pretrained(run / "encoder", **found)


def pretrain_steps(
    images: Images, steps: int, folder: Path, run: str, settings: Sequence[str], config: Path = CONFIG
) -> Path:
    """An encoder trained for some steps with further settings of launch/pretrain.py; one that is there is taken as it is.

    Args:
        folder: for shards and runs.
        run: name of the folder of this one.
        config: of launch/pretrain.py.
    """
    if not (folder / run / "encoder").exists():
        _run(folder / run, make_shards(images, folder), images, steps, ["--run.resume", "auto", *settings], config)
    return folder / run / "encoder"


def make_shards(images: Images, folder: Path) -> list[dict[str, str]]:
    """Shards of the images of every sensor, where they are not there yet: `data.sources`."""
    return [{"shards": str(_shards(name, images, folder))} for name in images.files]


def settings_of(images: Images, run: Path | str, steps: int, sources: list[dict[str, str]], config: Path) -> list[str]:
    """Of launch/pretrain.py."""
    given = {
        "run.dir": run, "run.steps": steps, "run.log_every": max(min(steps // 4, 25), 1), "run.picture_every": 0,
        "run.save_every": steps, "optim.batch": BATCH, "data.workers": 0, "data.sources": json.dumps(sources),
        "model.encoder.patch": images.patch, "data.crop": min(images.tile, 64),
    }  # fmt: skip
    return ["--config", str(config), *(str(text) for key, each in given.items() for text in (f"--{key}", each))]


def convert(form: str, weights: Path, out: Path) -> Path:
    """A released encoder as ours."""
    if not out.exists():
        call("launch/convert.py", form, weights.resolve(), out)
    return out


def _run(
    run: Path, sources: list[dict[str, str]], images: Images, steps: int, more: Sequence[str], config: Path = CONFIG
) -> None:
    call("launch/pretrain.py", *settings_of(images, run, steps, sources, config), *more)


def _shards(name: str, images: Images, folder: Path) -> Path:
    """The files of one sensor as shards, by links that give each a name of its own."""
    links, out, sensor = folder / "unlabelled" / name, folder / "shards" / name, images.sensors[name]
    if out.exists():
        return out
    links.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(images.files[name]):
        link = links / f"{number}_{file.name}"
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    told = name
    if name not in sensor_names():
        told = str(folder / f"{name}.yaml")
        Path(told).write_text(yaml.safe_dump(json.loads(json.dumps(sensor.to_dict()))))
    print(f"{len(images.files[name])} images of {name} to learn from without labels", file=sys.stderr, flush=True)
    call("launch/shards.py", links, "--sensor", told, "--out", out, "--tile", images.tile, "--workers", 1, "--force")
    return out
