"""Time to make shards of GeoTIFFs by this clone and by another one, such as an older commit, in turns.

    git worktree add ../older COMMIT
    python benchmarks/shards.py --against ../older --gb 1 --rounds 5

The scenes are synthetic: 12 named bands of uint16, noise of 12 bits, compressed by deflate. One worker each, warm page cache.
A round runs both, in changing order; printed are the ratios (this / other) with their median and range.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

HERE = Path(__file__).resolve().parents[1]
NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
SIDE = 2048  # pixels of a scene, 100 MB


def write_scenes(folder: Path, count: int) -> None:
    """Scenes of noise around 2000, tiled as cloud exports are."""
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(1000, 1000 + 2**11, (len(NAMES), SIDE, SIDE), dtype=np.uint16)
        with rasterio.open(
            *(folder / f"scene_{number:03d}.tif", "w"), driver="GTiff", count=len(NAMES), height=SIDE, width=SIDE,
            dtype="uint16", crs="EPSG:32632", transform=from_origin(5e5 + number * 1e5, 5e6, 10, 10), tiled=True,
            compress="deflate", zlevel=1,
        ) as target:  # fmt: skip
            target.write(pixels)
            target.descriptions = NAMES


def seconds(clone: Path, scenes: Path, out: Path) -> float:
    """Of one command, its start included."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "launch/shards.py", str(scenes), "--sensor", "sentinel2-l2a", "--out", str(out)]
    began = time.perf_counter()
    subprocess.run([*command, "--tile", "128", "--workers", "1"], cwd=clone, check=True, capture_output=True,
                   env={**os.environ, "PYTHONPATH": str(clone)})  # fmt: skip
    return time.perf_counter() - began


def main() -> None:
    """Print the ratio of every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, metavar="CLONE", help="the other clone")
    parser.add_argument("--gb", type=float, default=1.0, help="of stored numbers (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    options = parser.parse_args()
    clones = {"this": HERE, "other": options.against.resolve()}
    with tempfile.TemporaryDirectory() as scratch:
        scenes, out = Path(scratch, "scenes"), Path(scratch, "out")
        scenes.mkdir()
        write_scenes(scenes, max(1, round(options.gb * 1e9 / (len(NAMES) * SIDE * SIDE * 2))))
        ratios = []
        for number in range(options.rounds):
            order = list(clones) if number % 2 else list(clones)[::-1]
            took = {name: seconds(clones[name], scenes, out) for name in order}
            ratios.append(took["this"] / took["other"])
            print(
                f"round {number + 1}: {took['this']:.1f} s, other {took['other']:.1f} s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"ratio: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
