"""The model card of a folder for the hub: what the run and the files know, without places on this machine."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.json_files import read_json
from alliance.passwords import hide_passwords
from alliance.sensors import Sensor
from alliance.yaml_files import read_yaml
from datasets.shards.index import Index
from engine.log import REPORTS, read_metrics
from engine.summary import summarise
from finetune.chips.checkpoint import TASKS
from finetune.chips.model import BESIDE
from finetune.model_files import Inputs
from finetune.task import SCORES

TAGS = ["remote-sensing", "earth-observation", "alliance-rs"]


class Run(NamedTuple):
    """What a run folder tells; all of it may be missing."""

    settings: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Any]  # of the network that a task kept


def read_run(folder: Path) -> Run | None:
    """The run that made the export or network in a folder, or whose folder this is; None: there is none here."""
    for place in (folder, folder.parent):
        if (place / "config.yaml").is_file() and (place / "metrics.jsonl").is_file():
            settings, records = read_yaml(place / "config.yaml"), read_metrics(place / "metrics.jsonl")
            return Run(settings, records, _json(place / SCORES))
    return None


def encoder_card(encoder: AllianceEncoder, run: Run | None, licence: str | None, name: str) -> str:
    """The card of an encoder, as Markdown with a YAML header.

    Args:
        licence: as the hub names licences; None: none is claimed.
        name: id on the hub, or of the folder.
    """
    config = encoder.config
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    first = next(iter(encoder.sensors), "NAME")
    return _card(name, licence, run, {
        "What it is": [
            f"An Alliance encoder: {config.depth} blocks of width {config.embed_dim}, {config.heads} heads, patches of "
            f"{config.patch} x {config.patch} pixels, {millions:.2f} million parameters. It takes any bands by their "
            f"wavelengths, and knows the sensors below.",
        ],
        "Sensors": _sensor_rows(list(encoder.sensors.values())),
        "Use": [
            "```python", "import alliance  # pip install alliance-rs", "",
            f'encoder = alliance.load_encoder("{name}")', f'sensor = encoder.sensors["{first}"]',
            "features = encoder(sensor.to_physical(stored), sensor)  # stored: (b, c, h, w) numbers as in the file", "```",
        ],
    })  # fmt: skip


def network_card(inputs: Inputs, task: str, run: Run | None, licence: str | None, name: str) -> str:
    """The card of a trained network; arguments as of `encoder_card`."""
    images = [
        f"* `{role}`: {image.channels} channels, bands {', '.join(map(str, image.source.bands)) or 'all'}"
        f"{f', stored as {image.source.dtype}' if image.source.dtype else ''}"
        for role, image in inputs.images.items()
    ]
    given = " ".join(f"--image {role}=FILE" for role in inputs.images) + " --out map.tif"
    if task in TASKS:
        given = f"--images FOLDER {'--beside FOLDER ' if BESIDE in inputs.images else ''}--out labels.csv"
    return _card(name, licence, run, {
        "What it is": [f"A network of task `{task}` of Alliance, for {len(inputs.classes)} classes."],
        "Images": images,
        "Classes": [", ".join(inputs.classes)],
        "Use": ["```sh", f"python finetune/predict.py --checkpoint FOLDER {given}", "```"],
    })  # fmt: skip


def _card(name: str, licence: str | None, run: Run | None, parts: Mapping[str, Sequence[str]]) -> str:
    header = {"library_name": "alliance-rs", "tags": TAGS} | ({"license": licence} if licence else {})
    told = licence or "Not stated. Whoever publishes these weights states it."
    sections = {**parts, "Data": _data(run), "Training": _training(run), "Scores": _scores(run), "Licence": [told]}
    lines = ["---", yaml.safe_dump(header, sort_keys=False).strip(), "---", "", f"# {name}"]
    for title, content in sections.items():
        if content:
            lines += ["", f"## {title}", "", *content]
    return "\n".join(lines) + "\n"


def _sensor_rows(sensors: Sequence[Sensor]) -> list[str]:
    rows = ["| Sensor | Bands | Unit | Pixel, m |", "|---|---|---|---|"]
    for sensor in sensors:
        units = ", ".join(dict.fromkeys(band.unit for band in sensor.bands))
        rows.append(f"| {sensor.name} | {', '.join(sensor.band_names)} | {units} | {sensor.gsd_m or '-'} |")
    return rows if sensors else []


def _data(run: Run | None) -> list[str]:
    """Shards with the checksums of their contents, or the set of labelled images, by their names alone."""
    data = _part(run, "data")
    if isinstance(data.get("set"), str) and data["set"]:
        return [f"Labelled images: `{Path(data['set']).stem}`."]
    if isinstance(data.get("labels"), str) and isinstance(data.get("path"), str):  # of whole images
        return [f"Labelled images: `{Path(data['path']).name}`, labels from {data['labels']}."]
    rows = [
        f"| {_name_of(source['shards'])} | {source.get('weight', 1)} | {' | '.join(_index_of(source['shards']))} |"
        for source in data.get("sources") or ()
        if isinstance(source, dict) and isinstance(source.get("shards"), str)
    ]
    return ["| Shards | Weight | Samples | Checksum of the index |", "|---|---|---|---|", *rows] if rows else []


def _name_of(place: str) -> str:
    """The last part of a folder or an address; commands say too much of the machine they ran on."""
    return "a stream" if place.startswith("pipe:") else hide_passwords(place).rstrip("/").rpartition("/")[2]


def _index_of(place: str) -> tuple[str, str]:
    """Number of samples and checksum, where the shards are still at hand."""
    try:
        index = Index.read(Path(place))
    except (InputError, OSError):
        return "-", "the shards are not at hand"
    return str(index.samples), f"`{index.digest[:16]}`"


def _training(run: Run | None) -> list[str]:
    if run is None:
        return ["Not known here: these weights were converted, or exported without their run."]
    steps, optim = _part(run, "run"), _part(run, "optim")
    done = max((record["step"] + 1 for record in run.records if isinstance(record.get("step"), int)), default=0)
    facts = {
        "steps": f"{done} of {steps.get('steps', '?')}",
        "batch": optim.get("batch"),
        "learning rate": optim.get("lr"),
        "seed": steps.get("seed"),
    }
    lines = [f"* {name}: {value}" for name, value in facts.items() if value is not None]
    return lines + [f"* losses of {line}" for line in summarise(run.records)]


def _scores(run: Run | None) -> list[str]:
    """Those of the network that was kept; of an encoder, the last report of every kind."""
    if run is None:
        return []
    if run.scores:
        return [f"* {', '.join([*_labels(run.scores), *_figures(run.scores)])}"]
    last: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for record in run.records:
        if record.get("event") in REPORTS - {"picture"}:
            last[tuple(_labels(record))] = record
    return [
        f"* {', '.join(key)}, after step {record.get('step', -1) + 1}: {', '.join(_figures(record))}"
        for key, record in last.items()
    ]


def _labels(record: Mapping[str, Any]) -> Iterator[str]:
    return (value for value in record.values() if isinstance(value, str) and "/" not in value)


def _figures(record: Mapping[str, Any]) -> Iterator[str]:
    return (
        f"{name} {value:.4g}"
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    )


def _json(path: Path) -> Mapping[str, Any]:
    try:
        record = read_json(path)
    except InputError:
        return {}
    return record if isinstance(record, dict) else {}


def _part(run: Run | None, name: str) -> Mapping[str, Any]:
    found = run.settings.get(name) if run else None
    return found if isinstance(found, dict) else {}
