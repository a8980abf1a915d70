"""The command `finetune/predict.py`: the class map of a whole scene by a trained or converted network of any task.

The map is a Cloud Optimised GeoTIFF on the grid of the images: class indices, 255 where no image has a pixel, with a
colour table and class names. A network of patches (S2Fin) also leaves out pixels that are missing in one of its images.
Memory grows with the width of the scene, not with its height.

With --embeddings: what a pretrained encoder says of every patch, on the grid of the patches, instead of classes.

A network of finetune/scene.py or finetune/multilabel.py labels whole images instead: --images FOLDER --out labels.csv,
and --beside FOLDER where it takes two of every patch.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from alliance.errors import InputError
from datasets.cluster import Cluster, connected
from datasets.commands import run_body
from datasets.imagery.mirror import mirrored
from datasets.options import Parser, number_of
from datasets.storage.delivery import run_delivered
from datasets.storage.places import is_store
from finetune.chips.checkpoint import TASKS
from finetune.mapping.chip_command import add_chip_options, refuse_chip_options, write_chip_labels
from finetune.mapping.embedding_command import add_embedding_options, embed, refuse_embedding_options
from finetune.mapping.images import ImageFile, place_of
from finetune.mapping.networks import open_network
from finetune.mapping.pieces import OnCluster, run_here, usable_device
from finetune.mapping.scene import STANDARD, MapRecipe, SceneOptions, predict_scene
from finetune.model_files import find_network, read_record

SHORT = ("optical", "sar")  # images with a flag of their own
WRITTEN = ("out", "probabilities", "parquet", "picture", "footprints")  # options that say where


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one message on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    run_body(lambda: run_delivered(options, WRITTEN, _read_stores), stopped="stopped; no map was written")


def _read_stores(options: argparse.Namespace) -> list[str]:
    """Run with paths in the place of images in stores."""
    images = [text.partition("=") for text in options.image]
    given = [*(getattr(options, name) or "" for name in SHORT), *(text for _, _, text in images)]
    stored = [place for text in given if is_store(place := place_of(text)[0])]
    _refuse_stores(options, stored)
    with mirrored(stored) as mirror:

        def here(text: str) -> str:
            place, key = place_of(text)
            return f"{mirror.path(place)}{key}" if is_store(place) else text

        for name in SHORT:
            setattr(options, name, getattr(options, name) and here(getattr(options, name)))
        options.image = [f"{name}{equals}{here(text)}" for name, equals, text in images]
        options.images, options.beside = (list(map(Path, texts)) for texts in (options.images, options.beside))
        return [mirror.told(line) for line in _predict(options)]


def _refuse_stores(options: argparse.Namespace, stored: Sequence[str]) -> None:
    if stored and options.dask:
        raise InputError(
            f"--dask needs images that all workers see as files, not {stored[0]}; fetch them (aws s3 cp), or leave --dask out"
        )
    for text in filter(is_store, (*options.images, *options.beside)):
        raise InputError(
            f"{text}: images that are labelled whole are read from folders here; fetch them (aws s3 cp --recursive)"
        )


def _predict(options: argparse.Namespace) -> list[str]:
    if options.dask is None:
        return _write(options, usable_device(options.device))
    with connected(options.dask) as cluster:
        return _write(options, "cpu", cluster)


def _write(options: argparse.Namespace, device: str, cluster: Cluster | None = None) -> list[str]:
    """Write what is wanted, with a network on a device of this process, or on those of a cluster's workers."""
    if options.embeddings:
        refuse_chip_options(options)
        return embed(options, device, cluster)
    refuse_embedding_options(options)
    folder = find_network(options.checkpoint)
    if read_record(folder)["task"] in TASKS:
        if cluster is not None:
            raise InputError(f"the network in {folder} labels whole images, which --dask does not; leave it out")
        return write_chip_labels(options, folder, device)
    refuse_chip_options(options)
    network = open_network(folder, device)
    files = _files(options, list(network.inputs.images))
    scene_options = SceneOptions(
        window=STANDARD.window if options.window is None else options.window,
        overlap=options.overlap,
        batch=options.batch,
        force=options.force,
    )
    run = run_here
    if cluster is not None:
        run = OnCluster(cluster, MapRecipe.of(folder, options.device, files, scene_options))
    try:
        predict_scene(network, files, options.out, scene_options, probabilities=options.probabilities, run=run)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{options.device} has too little memory; take a smaller --batch or --window") from error
    return [f"map in {options.out}" + (f", probabilities in {options.probabilities}" if options.probabilities else "")]


def _files(options: argparse.Namespace, wanted: Sequence[str]) -> dict[str, ImageFile]:
    """The images by name, exactly those that the network takes."""
    takes = f"the network in {options.checkpoint} takes {' and '.join(wanted)}"
    given = {name: text for name in SHORT if (text := getattr(options, name)) is not None}
    for pair in options.image:
        name, equals, text = pair.partition("=")
        if not equals or not text or name in given:
            raise InputError(f"--image {pair!r}: give each image once, as NAME=FILE or NAME=FILE:KEY; {takes}")
        given[name] = text
    for name in wanted:
        if name not in given:
            flag = f"--{name} FILE" if name in SHORT else f"--image {name}=FILE"
            raise InputError(f"{takes}; give {flag}")
    for name in given:
        if name not in wanted:
            raise InputError(f"{takes} alone; omit {f'--{name}' if name in SHORT else f'--image {name}=...'}")
    return {name: ImageFile.parse(given[name]) for name in wanted}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="finetune/predict.py", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="run folder, its model/, or a converted release")
    add("--image", action="append", default=[], metavar="NAME=FILE", help="an image that the network takes, stored as the "
        "training images were, such as passive=hsi.tif; FILE:KEY for an array of a .mat or .h5; all on one grid; here or in "
        "object storage (s3://bucket/hsi.tif)")  # fmt: skip
    add("--optical", metavar="FILE", help="short for --image optical=FILE")
    add("--sar", metavar="FILE", help="short for --image sar=FILE")
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="class map to write, .tif, here or in object storage (s3://bucket/map.tif); of whole images a table, .csv",
    )
    add(
        "--probabilities",
        metavar="FILE",
        help="write these too: a band per class, uint8 = 250 x probability",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default here: %(default)s")
    add(
        "--window",
        type=number_of(SceneOptions, "window"),
        metavar="N",
        help=f"side, pixels (default {STANDARD.window}; embeddings: about 256)",
    )
    add("--overlap", type=number_of(SceneOptions, "overlap"), metavar="N", help="of windows, pixels (default 128; none for networks of patches; "
        "embeddings: a quarter of the window)")  # fmt: skip
    add(
        "--batch",
        type=number_of(SceneOptions, "batch"),
        metavar="N",
        help="windows, or patches, at once (default 4, or 256)",
    )
    add("--dask", metavar="ADDRESS", help="let the workers of a running Dask scheduler do the windows (tcp://HOST:8786); "
        "they see the same files under the same paths")  # fmt: skip
    add("--force", action="store_true", help="map images though their numbers are not like those of training")
    add_embedding_options(parser)
    add_chip_options(parser)
    return parser
