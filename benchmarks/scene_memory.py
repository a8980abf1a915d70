"""Memory of mapping a whole scene:  python benchmarks/scene_memory.py --width 20000 --height 5000 20000 [--embeddings]

Writes synthetic scenes by windows, maps them with a network that looks at single pixels (so that what is measured is ours, not a
network's activations; --size atto puts a PAD network in its place) or embeds them with a small encoder, and prints the peak of
the process's memory, which the height must not change. The scenes are written by other processes. With --compare 2000 it tells
how far maps and embeddings by windows are from those of the scene at once.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import Tensor

sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from alliance.checkpoint import save_encoder  # noqa: E402
from alliance.encoder import AllianceEncoder, EncoderConfig  # noqa: E402
from alliance.sensors.catalog import find_sensor  # noqa: E402
from datasets.imagery.images import ImageSource  # noqa: E402
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig  # noqa: E402
from finetune.dense.model import DenseConfig, DenseNetwork  # noqa: E402
from finetune.mapping.embeddings import EmbeddingOptions, embed_scene  # noqa: E402
from finetune.mapping.images import ImageFile  # noqa: E402
from finetune.mapping.networks import SegmentationNetwork  # noqa: E402
from finetune.mapping.scene import SceneOptions, predict_scene  # noqa: E402
from finetune.model_files import Inputs, image_input, nameless  # noqa: E402
from finetune.pad.model import Pad, PadConfig, PadOutput  # noqa: E402

CLASSES = 7
PATCH = 32  # pixels, of the encoder that is compared: 2,000 x 2,000 pixels at once are then 3,969 tokens
RGB = find_sensor("rgb-uint8").with_statistics([0.5] * 3, [0.25] * 3)
BLOCK = 512  # pixels, side of the blocks in which the scenes are stored
INPUTS = Inputs(
    classes=nameless(CLASSES),
    images={
        name: image_input(ImageSource(bands=tuple(range(1, count + 1)), mean=(128,) * count, std=(64,) * count))
        for name, count in (("optical", 3), ("sar", 1))
    },
)


def main() -> None:
    """Map what is asked for and print a line for each scene."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    if options.compare:
        for line in compare(options.compare):
            print(line, flush=True)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for height in options.height:
            files = scene_files(Path(scratch), options.width, height, 1 if options.embeddings else 2)
            apart(
                measure, options, height, files, Path(scratch)
            )  # each in a process of its own, with a peak of its own


def measure(options: argparse.Namespace, height: int, files: dict[str, Path], scratch: Path) -> None:
    """Map one scene and print the peak of this process."""
    torch.set_num_threads(1)
    located, out = {name: ImageFile(path) for name, path in files.items()}, scratch / "map.tif"
    if options.embeddings:
        encoder, what = small_encoder(options.patch), f"embeddings by patches of {options.patch}"
        before, began = peak_mib(), time.perf_counter()
        embed_scene(encoder, RGB, located["optical"], out, EmbeddingOptions(progress=False))
    else:
        network = pointwise if options.size is None else Pad(PadConfig(size=options.size, sar_channels=1)).eval()
        what = f"classes, network {options.size or 'pointwise'}"
        before, began = peak_mib(), time.perf_counter()
        predict_scene(SegmentationNetwork(network, INPUTS), located, out, SceneOptions(progress=False))
    print(f"{options.width} x {height}, {what}: peak {peak_mib():.0f} MiB, {before:.0f} MiB before; "
          f"{time.perf_counter() - began:.0f} s on one thread", flush=True)  # fmt: skip


def compare(side: int) -> Iterator[str]:
    """How far windows are from the scene at once, for a nano encoder and for one whose tokens see their own patch alone."""
    whole = -(-side // PATCH) * PATCH
    with tempfile.TemporaryDirectory() as scratch:
        image = ImageFile(scene_files(Path(scratch), side, side, 1)["optical"])
        for name, local in (("nano", False), ("own patch alone", True)):
            encoder = nano_encoder(local=local)
            found = []
            for window, overlap in ((512, 128), (whole, 0)):
                options = EmbeddingOptions(window=window, overlap=overlap, positions="keep", progress=False)
                embed_scene(encoder, RGB, image, Path(scratch, "out.tif"), options)
                with rasterio.open(Path(scratch, "out.tif")) as file:
                    found.append(file.read())
            known = np.isfinite(found[1])  # a patch of which the scene covers less than half has no features
            assert np.array_equal(np.isfinite(found[0]), known), "windows lack features elsewhere"
            gap, spread = np.abs(found[0] - found[1])[known], found[1][known].std()
            yield (f"{side} x {side}, embeddings, {name}: largest difference {gap.max():.2g}, mean {gap.mean():.2g}; deviation of "
                   f"the features {spread:.2g}")  # fmt: skip
            network = dense_network(encoder, Path(scratch, name))
            maps = []
            for window, overlap in ((512, 128), (side, 0)):
                options = SceneOptions(window=window, overlap=overlap, progress=False)
                predict_scene(network, {"optical": image}, Path(scratch, "map.tif"), options)
                with rasterio.open(Path(scratch, "map.tif")) as file:
                    maps.append(file.read(1))
            yield f"{side} x {side}, class map, {name}: {(maps[0] != maps[1]).mean():.2%} of the pixels have another class"


def small_encoder(patch: int) -> AllianceEncoder:
    """One block, as what is measured is ours."""
    return AllianceEncoder(EncoderConfig(embed_dim=48, depth=1, heads=3, patch=patch), [RGB]).eval()


def nano_encoder(*, local: bool) -> AllianceEncoder:
    """Random weights; `local`: nothing but a token's own patch matters."""
    torch.manual_seed(0)
    encoder = AllianceEncoder(EncoderConfig(embed_dim=96, depth=4, heads=3, patch=PATCH, table=int(local)), [RGB])
    for name, parameter in encoder.named_parameters():
        if local and "attn.proj" in name:
            torch.nn.init.zeros_(parameter)
    return encoder.eval()


def dense_network(encoder: AllianceEncoder, folder: Path) -> SegmentationNetwork:
    """The encoder with a linear head of random weights."""
    config = DenseConfig(encoder=TransferConfig(sensors={"optical": InputSensor(sensor=RGB.name)}), head="linear")
    checkpoint = str(save_encoder(encoder, folder))
    network = DenseNetwork(config, {"optical": 3}, CLASSES, checkpoint=checkpoint).eval()
    own = Inputs(classes=INPUTS.classes, images={"optical": INPUTS.images["optical"]})
    return SegmentationNetwork(network, own, roles=network.roles)


def scene_files(folder: Path, width: int, height: int, images: int) -> dict[str, Path]:
    """Synthetic images of one scene, written by another process."""
    files = {name: folder / f"{name}.tif" for name in ("optical", "sar")[:images]}
    for bands, path in zip((3, 1), files.values(), strict=False):
        apart(write, path, bands, width, height)
    return files


def apart(call: Callable[..., None], *arguments: object) -> None:
    """Do it in another process."""
    process = multiprocessing.get_context("spawn").Process(target=call, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def pointwise(rgb: Tensor, sar: Tensor) -> PadOutput:
    logits = torch.cat([rgb, sar, rgb * sar], dim=1)
    return PadOutput(logits, logits, torch.zeros(()))


def write(path: Path, bands: int, width: int, height: int) -> None:
    """A tiled GeoTIFF whose blocks repeat one synthetic block."""
    block = np.random.default_rng(0).integers(1, 256, (bands, BLOCK, BLOCK), dtype=np.uint8)
    form = {"count": bands, "width": width, "height": height, "dtype": "uint8", "crs": "EPSG:32650"}
    tiled = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1}
    with rasterio.open(path, "w", driver="GTiff", transform=Affine(5, 0, 0, 0, -5, 0), **form, **tiled) as file:
        for row in range(0, height, BLOCK):
            for column in range(0, width, BLOCK):
                rows, columns = min(BLOCK, height - row), min(BLOCK, width - column)
                file.write(block[:, :rows, :columns], window=Window(column, row, columns, rows))  # pyright: ignore[reportCallIssue]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--width", type=int, default=5556)
    add(
        "--height",
        type=int,
        nargs="+",
        default=[3704],
        help="of one scene or several, each mapped by a process of its own",
    )
    add("--size", help="of a PAD network, such as atto; default: one that looks at single pixels")
    add("--embeddings", action="store_true", help="features of a small encoder in place of classes")
    add("--patch", type=int, default=16, help="of that encoder, pixels (default %(default)s)")
    add(
        "--compare",
        type=int,
        metavar="SIDE",
        help="instead: how far a scene of this side, such as 2000, is by windows from at once",
    )
    add("--scratch", type=Path, help="folder for scenes and maps (default: the system's; 20,000 x 20,000 need 4 GB)")
    return parser


if __name__ == "__main__":
    main()
