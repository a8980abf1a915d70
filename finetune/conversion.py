"""The command `launch/convert.py`: weights of other projects to our file formats."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from alliance.checkpoint import save_encoder
from alliance.files import require_empty
from alliance.released.parts import Options, read_record
from alliance.released.registry import FAMILIES, convert_released
from alliance.sensors.catalog import find_sensor
from datasets.commands import run_body
from datasets.options import Parser, number_of
from finetune.backbones.convnext import Size
from finetune.pad.convert import convert_file
from finetune.pad.model import PadConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: _convert(options), stopped="stopped; nothing was converted")


def _convert(options: argparse.Namespace) -> list[str]:
    require_empty(options.out)
    return _convert_pad(options) if options.kind == "pad" else _convert_encoder(options)


def _convert_pad(options: argparse.Namespace) -> list[str]:
    found = convert_file(options.file, options.out, size=options.size, classes=options.classes)
    values = sum(value.numel() for value in found.weights.values())
    first = f"{len(found.weights)} tensors of {values:,} values for {found.config.classes} classes, in {options.out}"
    return [first, *(f"assumed: {line}" for line in found.assumed)]


def _convert_encoder(options: argparse.Namespace) -> list[str]:
    sensors = tuple(find_sensor(name) for name in options.sensor)
    given = Options(heads=options.heads, sensors=sensors, month=options.month, record=read_record(options.file))
    converted = convert_released(options.kind, options.file, given)
    save_encoder(converted.encoder, options.out)
    config = converted.encoder.config
    sizes = f"{config.depth} blocks of width {config.embed_dim}, {config.heads} heads, patch {config.patch}"
    return [
        *converted.rows,
        *(f"assumed: {note}" for note in converted.notes),
        f"{sizes}; licence of the weights: {FAMILIES[options.kind].licence}",
        f"the encoder is in {options.out}; load it with alliance.load_encoder({str(options.out)!r})",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="FORMAT", dest="kind")
    pad = kinds.add_parser("pad", help="a released checkpoint of PAD: SAR-RGB segmentation (mmengine .pth)")
    pad.add_argument("file", type=Path, metavar="FILE", help="the .pth file; nothing in it is executed")
    pad.add_argument("out", type=Path, metavar="OUT", help="folder for model.safetensors and config.json")
    pad.add_argument(
        "--classes", type=number_of(PadConfig, "classes"), help="that it must tell apart (default: the file's own)"
    )
    pad.add_argument("--size", choices=get_args(Size), default="large", help="of ConvNeXt V2 (default: %(default)s)")
    for name, family in FAMILIES.items():
        kind = kinds.add_parser(name, help=f"{family.title}; licence of the weights: {family.licence}")
        kind.add_argument(
            "file", type=Path, metavar="FILE", help=".pth, .pt, .ckpt or .safetensors; nothing is executed"
        )
        kind.add_argument("out", type=Path, metavar="OUT", help="new folder, which alliance.load_encoder reads")
        kind.add_argument(
            "--heads",
            type=number_of(Options, "heads"),
            help="attention heads (default: usual for the width, or of config.json)",
        )
        kind.add_argument("--sensor", action="append", default=[], metavar="NAME|YAML",
                          help="whose images it shall read (default: those it was trained on)")  # fmt: skip
        kind.add_argument(
            "--month",
            type=number_of(Options, "month"),
            default=6,
            help="of the images, for Galileo (default: %(default)s)",
        )
    return parser
