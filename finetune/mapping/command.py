"""The command `finetune/predict.py`: the class map of a whole scene by a trained or converted PAD network.

The map is a Cloud Optimised GeoTIFF on the grid of the images: class indices, 255 where no image has a pixel, with a
colour table and class names. Memory grows with the width of the scene, not with its height.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from alliance.errors import InputError
from finetune.mapping.scene import STANDARD, SceneOptions, predict_scene
from finetune.pad.checkpoint import find_pad, load_pad
from finetune.pad.inputs import Inputs, read_inputs


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one message on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = _parser().parse_args(arguments)
    try:
        _predict(options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        print(f"error: {options.device} has too little memory; take a smaller --batch or --window", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; no map was written", file=sys.stderr)
        sys.exit(130)
    print(f"map in {options.out}" + (f", probabilities in {options.probabilities}" if options.probabilities else ""))


def _predict(options: argparse.Namespace) -> None:
    scene_options = SceneOptions(
        window=options.window, overlap=options.overlap, batch=options.batch, device=_device(options.device)
    )
    folder = find_pad(options.checkpoint)
    inputs = read_inputs(folder)
    files = _files(options, inputs)
    network = load_pad(folder, device=scene_options.device)
    predict_scene(network, inputs, files, options.out, scene_options, probabilities=options.probabilities)


def _files(options: argparse.Namespace, inputs: Inputs) -> dict[str, Path]:
    """The images by modality, exactly those that the network takes."""
    given = {"rgb": ("--optical", options.optical), "sar": ("--sar", options.sar)}
    for modality, (flag, path) in given.items():
        if modality in inputs.sources and path is None:
            raise InputError(
                f"the network in {options.checkpoint} takes {' and '.join(inputs.sources)}; give {flag} FILE"
            )
        if modality not in inputs.sources and path is not None:
            raise InputError(
                f"the network in {options.checkpoint} takes {' and '.join(inputs.sources)} alone; omit {flag}"
            )
    return {modality: given[modality][1] for modality in inputs.sources}


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); cpu always can") from error
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune/predict.py", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="run folder, its model/, or a converted release")
    add("--optical", type=Path, metavar="FILE", help="optical scene, stored as the training images were")
    add("--sar", type=Path, metavar="FILE", help="SAR scene on the same grid; each as far as the network takes it")
    add("--out", type=Path, required=True, metavar="FILE", help="class map to write, .tif")
    add(
        "--probabilities",
        type=Path,
        metavar="FILE",
        help="write these too: a band per class, uint8 = 250 x probability",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add("--window", type=int, default=STANDARD.window, metavar="N", help="side, pixels (default %(default)s)")
    add("--overlap", type=int, default=STANDARD.overlap, metavar="N", help="of windows, pixels (default %(default)s)")
    add("--batch", type=int, default=STANDARD.batch, metavar="N", help="windows at once (default %(default)s)")
    return parser
