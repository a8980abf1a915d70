"""The part of `finetune/predict.py` that writes embeddings."""

import argparse

import torch

from alliance.checkpoint import digest_of, find_export, load_encoder
from alliance.encoder import AllianceEncoder
from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor
from datasets.cluster import Cluster
from datasets.options import NumberOrFile, number_of
from finetune.mapping.embeddings import Embedded, EmbeddingOptions, EmbeddingRecipe, embed_scene
from finetune.mapping.images import ImageFile
from finetune.mapping.map_pictures import draw_features
from finetune.mapping.pieces import OnCluster, run_here

OWN = ("dtype", "pca", "groups", "positions", "bands", "parquet", "picture", "seed")  # options for embeddings alone


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """The options that go with --embeddings alone."""
    add = parser.add_argument_group("embeddings").add_argument
    add("--embeddings", action="store_true", help="write the features of an encoder (--checkpoint: a run, an export or a "
        "converted folder), a band each, a pixel per patch; --image SENSOR=FILE names the sensor")  # fmt: skip
    add(
        "--dtype",
        choices=["float16", "int8"],
        help="how features are stored (default float16); int8 with a scale per band",
    )
    add("--pca", type=NumberOrFile(number_of(EmbeddingOptions, "pca")), metavar="K|FILE", help="write K principal components, fitted to a part of the scene, or those of a FILE "
        "that was written so")  # fmt: skip
    add(
        "--groups",
        choices=["mean", "keep"],
        help="average the sensor's band groups (default), or keep them side by side",
    )
    add("--positions", choices=["remove", "keep"], help="take from the features what the encoder says at the same place of an "
        "empty window (default), or leave them as they are")  # fmt: skip
    add("--bands", metavar="NAMES", help="bands of the sensor that the image has, such as B02,B03,B04 (default: all)")
    add("--parquet", metavar="FILE", help="also a GeoParquet table of the patches' centres (needs pyarrow)")
    add("--picture", metavar="FILE", help="also a .png of the first three bands as red, green and blue")
    add(
        "--seed",
        type=number_of(EmbeddingOptions, "seed"),
        help="of the part that principal components are fitted to (default 0)",
    )


def refuse_embedding_options(options: argparse.Namespace) -> None:
    """Refuse options that need --embeddings where that is not given."""
    given = [name for name in OWN if getattr(options, name) is not None]
    if given:
        raise InputError(f"--{given[0]} goes with --embeddings; add that, or leave --{given[0]} out")


def embed(options: argparse.Namespace, device: str, cluster: Cluster | None = None) -> list[str]:
    """Write the embeddings of a scene, and say what is in the files.

    Args:
        device: of this process.
        cluster: whose workers put the windows through the encoder, on `options.device`.
    Raises:
        InputError: a wrong option, encoder, sensor or image.
    """
    for name in ("probabilities", "optical", "sar"):
        if getattr(options, name) is not None:
            mend = "give the image as --image SENSOR=FILE" if name != "probabilities" else "leave it out"
            raise InputError(f"--{name} does not go with --embeddings; {mend}")
    encoder = load_encoder(options.checkpoint, device=device)
    sensor, file = _image(options, encoder)
    given = {
        name: getattr(options, name) for name in ("window", "overlap", "batch", "groups", "positions", "dtype", "seed")
    }
    given = {name: value for name, value in given.items() if value is not None}
    embedding = EmbeddingOptions(**given, pca=options.pca, force=options.force)
    run = run_here
    if cluster is not None:
        folder = find_export(options.checkpoint)
        run = OnCluster(cluster, EmbeddingRecipe.of(folder, options.device, sensor, file, embedding))
    digest = digest_of(options.checkpoint)
    try:
        found = embed_scene(
            encoder, sensor, file, options.out, embedding, table=options.parquet, digest=digest, run=run
        )
    except torch.OutOfMemoryError as error:
        raise InputError(f"{options.device} has too little memory; take a smaller --batch or --window") from error
    if options.picture:
        draw_features(options.picture, options.out)
    return _told(options, found)


def _told(options: argparse.Namespace, found: Embedded) -> list[str]:
    grid = found.grid
    lines = [f"embeddings in {options.out}: {found.bands} bands of {grid.height} x {grid.width} patches"]
    if found.components is not None:
        lines.append(
            f"the components hold {float(found.components.share.sum()):.1%} of the variance that they were fitted to"
        )
    lines += [f"{found.points} patches in {options.parquet}"] if options.parquet else []
    return lines + ([f"picture in {options.picture}"] if options.picture else [])


def _image(options: argparse.Namespace, encoder: AllianceEncoder) -> tuple[Sensor, ImageFile]:
    """The sensor, with the bands that are read, and the file of the one image."""
    known = ", ".join(encoder.sensors) or "none"
    if len(options.image) != 1:
        raise InputError(
            f"--embeddings takes one image, {len(options.image)} are given; give --image SENSOR=FILE, the encoder knows "
            f"the sensors {known}"
        )
    name, equals, text = options.image[0].partition("=")
    if not equals or not text:
        raise InputError(f"--image {options.image[0]!r}: give SENSOR=FILE; the encoder knows the sensors {known}")
    sensor = encoder.sensors[name] if name in encoder.sensors else find_sensor(name)
    if options.bands is not None:
        sensor = sensor.select([band.strip() for band in options.bands.split(",")])
    if not sensor.has_statistics:
        raise InputError(
            f"sensor {name} has no mean and std, and is none of the encoder's ({known}); give one of those, or a YAML file "
            f"of a sensor with mean and std"
        )
    return sensor, ImageFile.parse(text)
