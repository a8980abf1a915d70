"""The command `launch/export.py`: an encoder, or a trained network, as a file or folder for other tools.

The graph of a file takes the numbers as they are stored in images (float32), so that scale, offset, missing pixels, mean
and deviation are within it; what bands those are stands in its metadata as JSON. A file is compared with the network
before it is written. Any batch and any size of images where the network permits it, else a file for each --size.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from alliance.errors import InputError
from datasets.commands import run_body
from datasets.options import Parser, whole
from datasets.storage.delivery import run_delivered
from finetune.export.graphs import Exportable, Sides, open_exportable
from finetune.export.hub import check_id, push_folder, write_folder
from finetune.export.programs import NEWEST, OPSET, make_program, require_onnx, write_onnx, write_torch

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
ALONE = {"hub": ("licence", "push", "private"), "onnx": ("opset",)}  # options of one format


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: run_delivered(options, ["out"], _export), stopped="stopped; what is written whole stays")


def _export(options: argparse.Namespace) -> list[str]:
    for form, names in ALONE.items():
        for name in names:
            if getattr(options, name) and options.format != form:
                raise InputError(f"--{name} goes with --format {form}; leave it out, or take that format")
    return _folder(options) if options.format == "hub" else _files(options)


def _folder(options: argparse.Namespace) -> list[str]:
    if options.sensor or options.size:
        raise InputError("a folder for the hub has all sensors and any size; leave --sensor and --size out")
    if options.private and not options.push:
        raise InputError("--private is of the repository that --push makes; give both or none")
    if options.push:
        check_id(options.push)
    write_folder(options.path, options.out, licence=options.licence, push=options.push)
    lines = [
        f"{options.out} holds the weights, their settings and README.md, the model card: read it before it is published"
    ]
    if not options.licence:
        lines.append("the card claims no licence; --licence gives one")
    if options.push:
        lines.append(f"uploaded to {push_folder(options.out, options.push, private=options.private)}")
    return lines


def _files(options: argparse.Namespace) -> list[str]:
    suffix, opset = SUFFIXES[options.format], options.opset or OPSET
    if options.out.suffix != suffix:
        raise InputError(f"{options.out}: --format {options.format} writes a file that ends in {suffix}; name it so")
    if options.format == "onnx":
        require_onnx()
    wanted = open_exportable(options.path, options.sensor)
    lines = []
    for path, sides in _targets(options.out, _sizes(options.size, wanted)).items():
        program = make_program(wanted, sides)
        if options.format == "onnx":
            found = write_onnx(program, path, wanted, sides, opset)
        else:
            found = write_torch(program, path, wanted, sides)
        size = f"images of {sides[0]} x {sides[1]}" if sides else f"images of any multiple of {wanted.multiple} pixels"
        told = ", ".join(map(str, found))
        lines.append(
            f"{path}, {path.stat().st_size / 1e6:.1f} MB, for {size}; largest differences from the network: {told}"
        )
    return [*lines, f"takes {_told(wanted)}; what they are stands in the metadata, see docs/export.md"]


def _told(wanted: Exportable) -> str:
    images = ", ".join(f"{name} ({channels} bands)" for name, channels in wanted.images.items())
    return f"{images}, gives {', '.join(wanted.outputs)}"


def _sizes(given: Sequence[str], wanted: Exportable) -> list[Sides | None]:
    """Sizes of images that get a file each; None: one file for all.

    Raises:
        InputError: no size, one that the network cannot take, or none where one is needed.
    """
    if wanted.sides is not None:
        if given:
            h, w = wanted.sides
            raise InputError(f"--size {given[0]}: the network takes images of {h} x {w} pixels alone; leave --size out")
        return [wanted.sides]
    if not given and wanted.fixed:
        raise InputError(
            f"the network needs a file for each size of images, as {wanted.fixed}; give --size 224 or --size HxW"
        )
    sizes: list[Sides | None] = []
    for text in given:
        match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
        sides = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not all(sides) or any(side % wanted.multiple for side in sides):
            least = wanted.multiple
            raise InputError(
                f"--size {text} is not a size; give multiples of {least} pixels, such as {4 * least} or {4 * least}x{6 * least}"
            )
        sizes.append(sides)
    return sizes or [None]


def _targets(out: Path, sizes: Sequence[Sides | None]) -> dict[Path, Sides | None]:
    """The file of each size; of several, their names tell it.

    Raises:
        InputError: one exists, or its folder does not.
    """
    named: dict[Path, Sides | None] = {out: sizes[0]}
    if len(set(sizes)) > 1:
        named = {out.with_stem(f"{out.stem}-{sides[0]}x{sides[1]}"): sides for sides in sizes if sides}
    for path in named:
        if path.exists():
            raise InputError(f"{path} exists, and nothing is overwritten; remove it, or give another name")
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent}; make it, or give another one")
    return named


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="launch/export.py", description=__doc__)
    add = parser.add_argument
    add("path", metavar="RUN", help="run folder of pretraining or of a task, an encoder/ or model/ folder, a converted "
        "release, or an id of the hub (encoders)")  # fmt: skip
    add("out", metavar="OUT", help="file to write, .pt2 or .onnx, here or in object storage; for hub a new folder")
    add("--format", choices=[*SUFFIXES, "hub"], required=True, help="torch: a torch.export program; onnx; hub: config.json, "
        "model.safetensors and a model card")  # fmt: skip
    add("--sensor", metavar="NAME", help="whose images an encoder shall take (default: the only one that it knows)")
    add("--size", action="append", default=[], metavar="N|HxW", help="rows and columns; again for more files")
    add("--opset", type=whole(OPSET, NEWEST), metavar="N", help=f"of ONNX (default {OPSET})")
    add(
        "--licence",
        metavar="ID",
        help="of the weights, for the model card, such as apache-2.0 (default: none is claimed)",
    )
    add(
        "--push",
        metavar="OWNER/NAME",
        help="upload the folder to the Hugging Face hub; without it nothing leaves this machine",
    )
    add("--private", action="store_true", help="the repository that --push makes is not public")
    return parser
