"""The command `finetune/probe.py`: how well an encoder's features tell classes apart, without any of it learning.

Beside every score stand those of raw statistics (mean and deviation of every band) and of the same encoder without training.
An interval holds the score in 95 of 100 drawings of the test images.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from alliance.checkpoint import load_encoder
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.ranges import Range
from alliance.readout import ReadOut
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor
from datasets.chips.reading import Fit
from datasets.commands import run_body
from datasets.labelled.parse import find_set
from datasets.options import SEED, Number, Parser, whole
from engine.probe_images import ProbeSet, open_probe_set
from engine.probing import Found, Kind, probe
from finetune.probing.dense import encoder_patches, open_mask_set, probe_masks, raw_patches
from finetune.scores import write_scores

READOUTS: tuple[ReadOut, ...] = get_args(ReadOut)
ENCODER, UNTRAINED, RAW = "encoder", "untrained", "raw statistics"


class Row(NamedTuple):
    """One probe of one set."""

    data: str
    kind: str
    readout: str
    found: dict[str, Found]  # by what it is of

    def told(self) -> str:
        """A line of the table, in percent."""
        cells = [f"{name} {_interval(found)}" for name, found in self.found.items()]
        return (
            f"{self.data:<16} {self.kind:<7} {self.readout:<9} " + "  ".join(f"{cell:<34}" for cell in cells).rstrip()
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: _probe(options), stopped="stopped; no scores were written")


@torch.inference_mode()
def _probe(options: argparse.Namespace) -> list[str]:
    if not options.data and not options.masks:
        raise InputError("nothing to probe on; give --data NAME=FOLDER of classes, or --masks NAME=SET of label maps")
    encoder = load_encoder(options.checkpoint, device=options.device)
    others = {ENCODER: encoder, UNTRAINED: untrained(encoder, options.seed)}
    rows, lines = [], []
    for text in options.data:
        images = _open(text, options, encoder)
        lines.append(_described(images))
        rows += _image_rows(images, others, options)
    for text in options.masks:
        name, sensor, place = _given("--masks", text, options, encoder)
        described, _, root = place.partition(",")
        masks = open_mask_set(find_set(described, root or None), sensor, options.role)
        lines.append(
            f"{name}: {len(masks.classes)} classes, {len(masks.train)} images to learn from, {len(masks.test)} scored"
        )
        patch = encoder.patch_size
        raw = probe_masks(masks, patch, raw_patches(patch), seed=options.seed)
        for readout in ("mean", "groups"):
            found = {
                key: probe_masks(masks, patch, encoder_patches(each, sensor, readout), seed=options.seed)
                for key, each in others.items()
            }
            rows.append(Row(name, "dense", readout, found | {RAW: raw}))
    options.out.mkdir(parents=True, exist_ok=True)
    write_scores(options.out / "scores.json", _record(rows, options))
    return [*lines, *(row.told() for row in rows), f"scores are in {options.out / 'scores.json'}"]


def untrained(encoder: AllianceEncoder, seed: int) -> AllianceEncoder:
    """An encoder of the same configuration and sensors with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = AllianceEncoder(encoder.config, tuple(encoder.sensors.values()))
    return other.to(next(encoder.parameters()).device).eval()


def _image_rows(images: ProbeSet, encoders: dict[str, AllianceEncoder], options: argparse.Namespace) -> Iterator[Row]:
    raw = tuple(part.statistics() for part in (images.train, images.test))
    beside = {kind: probe(kind, *raw, seed=options.seed) for kind in options.kind}
    for readout in options.readout:
        features = {key: images.features(each, readout, options.batch) for key, each in encoders.items()}
        for kind in options.kind:
            found = {key: probe(kind, *each, seed=options.seed) for key, each in features.items()}
            yield Row(images.name, kind, readout, found | {RAW: beside[kind]})


def _open(text: str, options: argparse.Namespace, encoder: AllianceEncoder) -> ProbeSet:
    """The images of NAME[@SENSOR]=FOLDER."""
    name, sensor, place = _given("--data", text, options, encoder)
    how = {"most": options.images, "share": options.share, "seed": options.seed, "fit": options.fit}
    try:
        return open_probe_set(Path(place), sensor, encoder.patch_size, name=name, **how)
    except InputError as error:
        if f"sensor {sensor.name}" not in str(error):
            raise
        others = [each for each in encoder.sensors if each != sensor.name]
        known = f", or by @{' or @'.join(others)}, which the encoder knows" if others else ""
        raise InputError(
            f"{error}; --bands names those of {sensor.name} that the images have; images of another sensor are read by "
            f"--data {name}@SENSOR.yaml={place}, a copy of the shipped file with mean and std of each band{known}"
        ) from error


def _given(flag: str, text: str, options: argparse.Namespace, encoder: AllianceEncoder) -> tuple[str, Sensor, str]:
    """Name, sensor and place of NAME[@SENSOR]=PLACE."""
    known = ", ".join(encoder.sensors) or "none"
    left, equals, place = text.partition("=")
    name, _, own = left.partition("@")
    if not (name and equals and place):
        raise InputError(f"{flag} {text!r}: give NAME=PLACE, or NAME@SENSOR=PLACE")
    wanted = own or options.sensor or (next(iter(encoder.sensors)) if len(encoder.sensors) == 1 else "")
    if not wanted:
        raise InputError(f"{flag} {text!r} names no sensor; give NAME@SENSOR=PLACE, the encoder knows {known}")
    sensor = encoder.sensors[wanted] if wanted in encoder.sensors else find_sensor(wanted)
    if options.bands:
        sensor = sensor.select([band.strip() for band in options.bands.split(",")])
    if not sensor.has_statistics:
        raise InputError(
            f"sensor {wanted} has no mean and std, and is none of the encoder's ({known}); give one of those, or a YAML file "
            f"of a sensor with mean and std"
        )
    return name, sensor, place


def _described(images: ProbeSet) -> str:
    h, w = images.train.images.shape[-2:]
    left_out = f", {images.skipped} files left out" if images.skipped else ""
    return (
        f"{images.name}: {len(images.classes)} classes, {len(images.train.labels)} images to learn from, "
        f"{len(images.test.labels)} scored, {h} x {w} pixels of {images.sensor.name}{left_out}"
    )


def _record(rows: Sequence[Row], options: argparse.Namespace) -> dict[str, Any]:
    listed = [
        {
            "data": row.data, "kind": row.kind, "readout": row.readout,
            **{key: {name: _percent(value) for name, value in found._asdict().items()} for key, found in row.found.items()},
        }
        for row in rows
    ]  # fmt: skip
    return {"checkpoint": str(options.checkpoint), "seed": options.seed, "probes": listed}


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else round(100 * share, 2)


def _interval(found: Found) -> str:
    ends = "" if math.isnan(found.low) else f" ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return f"{100 * found.accuracy:.1f}{ends}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="finetune/probe.py", description=__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="run folder, export, converted folder, or an id of the hub")
    add("--data", action="append", default=[], metavar="NAME[@SENSOR]=FOLDER", help="images in folders of classes, or below "
        "train and test; several times for several sets: accuracy")  # fmt: skip
    add("--masks", action="append", default=[], metavar="NAME[@SENSOR]=SET[,ROOT]", help="images with label maps, by a "
        "description of configs/labelled/ or a YAML file, and the folder of its files: mean IoU of a linear classifier of "
        "patches")  # fmt: skip
    add("--role", default="", help="which images of --masks (default: the first)")
    add("--sensor", default="", help="of all sets without one of their own (default: the encoder's only one)")
    add("--bands", default="", metavar="NAMES", help="bands of the sensor that the images have, such as B02,B03,B04")
    add("--kind", nargs="+", choices=get_args(Kind), default=["knn", "linear"], help="default %(default)s")
    add(
        "--readout",
        nargs="+",
        choices=READOUTS,
        default=list(READOUTS),
        help="what is read from the encoder (default all)",
    )
    add("--images", type=whole(1), default=1000, metavar="N", help="images to learn from at most, and as many to score, "
        "every class alike (default %(default)s)")  # fmt: skip
    add(
        "--share",
        type=Number(Range(0, 1, above=True, below=True), whole=False),
        default=0.5,
        help="of the images that is scored, where no folders tell (default %(default)s)",
    )
    add("--fit", choices=get_args(Fit), default="resize", help="how images of --data get one size: resized whole, or their middles "
        "cut out; the same choice as model.fit of scene.py (default %(default)s)")  # fmt: skip
    add("--batch", type=whole(1), default=64, metavar="N", help="images at once (default %(default)s)")
    add(
        "--seed",
        type=SEED,
        default=0,
        help="of splits, held-out parts, intervals and random weights (default %(default)s)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for scores.json")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    return parser
