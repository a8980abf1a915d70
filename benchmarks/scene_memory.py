"""Memory of mapping a whole scene:  python benchmarks/scene_memory.py --width 5556 --height 3704

Writes synthetic scenes by windows, maps them with a network that looks at single pixels (so that what is measured is ours, not a
network's activations; --size atto puts a PAD network in its place), and prints the peak of the process's memory. The scenes are
written by another process.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from torch import Tensor

sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets.imagery.images import ImageSource  # noqa: E402
from finetune.mapping.images import ImageFile  # noqa: E402
from finetune.mapping.networks import SegmentationNetwork  # noqa: E402
from finetune.mapping.scene import SceneOptions, predict_scene  # noqa: E402
from finetune.model_files import Inputs, image_input, nameless  # noqa: E402
from finetune.pad.model import Pad, PadConfig, PadOutput  # noqa: E402

CLASSES = 7
BLOCK = 512  # pixels, side of the blocks in which the scenes are stored
INPUTS = Inputs(
    classes=nameless(CLASSES),
    images={
        name: image_input(ImageSource(bands=tuple(range(1, count + 1)), mean=(128,) * count, std=(64,) * count))
        for name, count in (("optical", 3), ("sar", 1))
    },
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=5556)
    parser.add_argument("--height", type=int, default=3704)
    parser.add_argument("--size", help="of a PAD network, such as atto; default: one that looks at single pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        files = {"optical": Path(scratch, "optical.tif"), "sar": Path(scratch, "sar.tif")}
        for bands, path in zip((3, 1), files.values(), strict=True):
            writer = multiprocessing.get_context("spawn").Process(
                target=write, args=(path, bands, options.width, options.height)
            )
            writer.start()
            writer.join()
        network = pointwise if options.size is None else Pad(PadConfig(size=options.size, sar_channels=1)).eval()
        before, began = peak_mib(), time.perf_counter()
        located = {name: ImageFile(path) for name, path in files.items()}
        predict_scene(
            SegmentationNetwork(network, INPUTS), located, Path(scratch, "map.tif"), SceneOptions(progress=False)
        )
        print(f"{options.width} x {options.height}, network {options.size or 'pointwise'}: peak {peak_mib():.0f} MiB, "
              f"{before:.0f} MiB before; {time.perf_counter() - began:.0f} s on one thread")  # fmt: skip


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


if __name__ == "__main__":
    main()
