"""The command `launch/inspect.py`: what images, sets of labelled images, encoders and trained networks hold."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alliance.errors import InputError
from alliance.export_files import WEIGHTS
from alliance.yaml_files import read_yaml
from datasets.chips.chip import ChipSet
from datasets.chips.inspection import describe_chips, folders_of_classes
from datasets.commands import run_body
from datasets.imagery.cubes import CubeOptions
from datasets.labelled.inspection import describe_set, set_images
from datasets.labelled.parse import find_set, set_names
from datasets.options import Parser
from datasets.shards.gather import AUTO, Request
from datasets.shards.inspection import Look, describe, exported, look_at, look_into, show
from engine.settings import parse_settings
from engine.settings_tree import fields
from finetune.model_files import ImageInput, find_network, read_model_weights, read_record
from finetune.tasks.chips_config import MultilabelConfig, SceneConfig

SHOWN = 20  # bands of a trained network


def inspect(request: Request, picture: Path | None = None, root: Path | None = None) -> list[str]:
    """Everything there is to say of the paths; what they name may be of several kinds.

    Args:
        root: folder of the files of a set, instead of the one in its description.
    Raises:
        InputError: a path does not exist, or what it names is damaged.
    """
    lines: list[str] = []
    looks: list[Look] = []
    others: list[Path] = []
    for path in request.paths:
        if path.suffix in (".yaml", ".yml") or (not path.exists() and str(path) in set_names()):
            found, said = _inspect_described(path, root)
            looks, lines = [*looks, *found], [*lines, *said]
        elif request.sensor == AUTO and (classes := folders_of_classes(path)) is not None:
            found, said = _inspect_chips(classes)
            looks, lines = [*looks, *found], [*lines, *said]
        elif exported(path) is None and (network := _network(path)) is not None:
            lines += describe_network(network)
        else:
            others.append(path)
    if others:
        found, said = look_at(replace(request, paths=tuple(others)))
        looks, lines = [*looks, *found], [*lines, *said]
    return show(looks, lines, picture)


def describe_network(folder: Path) -> list[str]:
    """The task, the classes and the images of a trained network.

    Raises:
        InputError: a file is damaged.
    """
    record, weights = read_record(folder), read_model_weights(folder)
    count = sum(weight.numel() for weight in weights.values())
    lines = [f"{folder}: a trained network of task {record['task']}, {count:,} weights"]
    if classes := record.get("classes"):
        lines.append(f"  classes   {', '.join(classes)}")
    for name, stored in (record.get("inputs") or {}).items():
        image = ImageInput.from_record(stored)
        source = image.source
        told = {
            "sensor": source.sensor or None,
            "dtype": source.dtype,
            "bands": ", ".join(map(str, source.bands)) or f"all {image.channels}",
            "nodata": source.nodata,
            "scale": source.scale,
            "offset": source.offset,
            "logarithm": source.log or None,
        }
        lines.append(f"  {name}: {', '.join(f'{key} {value}' for key, value in told.items() if value is not None)}")
        mean, std = image.preprocessing.mean, image.preprocessing.std
        lines += [
            f"    channel {index + 1:<8} mean {mean[index]:>12.6g}  std {std[index]:>12.6g}"
            for index in range(min(len(mean), SHOWN))
        ]
        lines += [f"    ({len(mean) - SHOWN} channels more)"] * (len(mean) > SHOWN)
    return lines


def _inspect_described(path: Path, root: Path | None) -> tuple[list[Look], list[str]]:
    """A set of labelled images, or the images with labels that the settings of a task name."""
    record = read_yaml(path) if path.is_file() else {}
    if not isinstance(record.get("data"), dict) or "splits" in record:
        return _inspect_set(path, root)
    kinds = [kind for kind in (SceneConfig, MultilabelConfig) if set(record) <= {*fields(kind)}]
    if not kinds:
        raise InputError(f"{path} holds the settings of another task; give the description that its data.set names")
    place = ["--data.path", str(root)] if root else []
    return _inspect_chips(parse_settings(kinds[0], "", ["--config", str(path), "--run.dir", ".", *place]).data)


def _inspect_chips(described: ChipSet) -> tuple[list[Look], list[str]]:
    scene, told = describe_chips(described)
    look = look_into(scene)
    return [look], [*told, "", "image:", *describe(look)]


def _inspect_set(path: Path, root: Path | None) -> tuple[list[Look], list[str]]:
    described = find_set(path, root)
    lines = [f"{described.name}: a set of labelled images in {described.root}"]
    looks = []
    for role, scene in set_images(described).items():
        looks.append(look_into(scene))
        lines += ["", f"{role}:", *describe(looks[-1])]
    return looks, [*lines, "", *describe_set(described)]


def _network(path: Path) -> Path | None:
    try:
        return find_network(path)
    except InputError as error:
        if any(path.glob(f"*/model/{WEIGHTS}")):  # a run of several seeds
            raise error
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `launch/inspect.py`; a user's mistake is one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    cube = CubeOptions(key=options.key, axes=options.axes)
    request = Request(sensor=options.sensor, paths=tuple(options.paths), cube=cube)
    run_body(lambda: inspect(request, options.out, options.root), stopped="stopped; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="launch/inspect.py",
        description="Say what images, a set of labelled images, an encoder or a trained network hold; nothing is written but "
        "the picture that --out names.",
    )
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="files or folders of images, a folder of classes, the YAML file or "
        "the name of a set, settings of scene.py or multilabel.py, or the folder of an encoder, a network or a run")  # fmt: skip
    add("--sensor", default=AUTO, metavar="NAME", help="see whether this sensor fits (default: all of them)")
    add("--root", type=Path, metavar="DIR", help="folder of the files of a set (default: the description's)")
    add("--out", type=Path, metavar="FILE", help="picture (.png) with the histograms of the stored numbers")
    add("--key", help="name of the array in HDF5, netCDF, MATLAB and NumPy files (default: the only 3-D one)")
    add("--axes", help="order of its axes, such as hwc or chw")
    return parser
