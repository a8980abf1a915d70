"""The command `launch/convert.py`: weights of other projects to our file formats."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from alliance.errors import InputError
from finetune.backbones.convnext import Size
from finetune.pad.convert import convert_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    try:
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise InputError(f"{options.out} is not empty, and nothing in it is overwritten; give a new folder as OUT")
        found = convert_file(options.file, options.out, size=options.size, classes=options.classes)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    values = sum(value.numel() for value in found.weights.values())
    print(f"{len(found.weights)} tensors of {values:,} values for {found.config.classes} classes, in {options.out}")
    for line in found.assumed:
        print(f"assumed: {line}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    pad = kinds.add_parser("pad", help="a released checkpoint of PAD: SAR-RGB segmentation (mmengine .pth)")
    pad.add_argument("file", type=Path, metavar="FILE", help="the .pth file; nothing in it is executed")
    pad.add_argument("out", type=Path, metavar="OUT", help="folder for model.safetensors and config.json")
    pad.add_argument("--classes", type=int, help="that it must tell apart (default: the file's own)")
    pad.add_argument("--size", choices=get_args(Size), default="large", help="of ConvNeXt V2 (default: %(default)s)")
    return parser
