"""What a frozen encoder loses by other statistics than its sensor's, on tiles with land cover.

    python launch/convert.py galileo ../shared/weights/galileo_nano/encoder.pt OUT
    python benchmarks/encoder_statistics.py OUT --path ../shared/data/terramesh_tiles

Tokens of Sentinel-2 L1C tiles that are standardised by the encoder's sensor, by the mean and deviation of all tiles, and tile by tile:
cosine to those by the sensor, and the accuracy of a linear probe that learns the commonest class of each patch on the left
halves of all tiles and is scored on the right halves. So small a set shows a difference to itself, not how good an encoder is.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]  # the clone's root

import torch
from einops import rearrange
from torch import Tensor

from alliance import load_encoder
from alliance.encoder import AllianceEncoder
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor
from alliance.sensors.standardise import standardise
from datasets.imagery.images import ImageSource, SensorSource, read_image
from engine.probing import Found, Labelled, interval, linear
from finetune.probing.dense import patch_labels

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
CLASSES = 10


def main() -> None:
    """Read, encode three times, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a converted Galileo, or another encoder with these bands of sensor galileo")
    parser.add_argument("--path", type=Path, required=True, help="folder of S2L1C and LULC")
    options = parser.parse_args()
    encoder = load_encoder(options.checkpoint)
    sensor = encoder.sensors["galileo"].select(BANDS)
    images, labels = read(options.path, encoder.patch_size)
    own = encode(encoder, sensor, images, [known(sensor)] * len(images))
    everything = torch.cat([image.flatten(1) for image in images], dim=1)
    apart = [moments(image.flatten(1)) for image in images]
    ways = {
        "sensor": own,
        "data set": encode(encoder, sensor, images, [moments(everything)] * len(images)),
        "each tile": encode(encoder, sensor, images, apart),
    }
    print(f"{len(images)} tiles{'':10}{'cosine':>10}{'probe':>10}{'95 %':>16}")
    for name, tokens in ways.items():
        cosine = torch.nn.functional.cosine_similarity(tokens, own, dim=-1).mean()
        found = probe(tokens, labels)
        print(f"{name:17}{cosine:10.3f}{100 * found.accuracy:10.1f}{100 * found.low:9.1f} to {100 * found.high:.1f}")


def read(path: Path, patch: int) -> tuple[list[Tensor], Tensor]:
    """Reflectance (c, h, w) of every tile with more than one class, and its patches' classes (tiles, rows, columns)."""
    source = SensorSource(known=find_sensor("sentinel2-l1c-baseline4").select(BANDS))
    images, labels = [], []
    for file in sorted((path / "S2L1C").glob("*.tif")):
        label = read_image(path / "LULC" / file.name, ImageSource()).numbers[0].long()
        rows, columns = (side // patch * patch for side in label.shape)
        if len(label.unique()) > 1:
            images.append(read_image(file, source).numbers[:, :rows, :columns])
            found = patch_labels(label[:rows, :columns], patch, CLASSES)
            labels.append(rearrange(found, "(y x) -> y x", y=rows // patch))
    return images, torch.stack(labels)


def known(sensor: Sensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every band (c,) of a sensor."""
    return torch.tensor([band.mean for band in sensor.bands]), torch.tensor([band.std for band in sensor.bands])


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every band of pixels (c, n), two of (c,)."""
    return pixels.mean(dim=1), pixels.std(dim=1)


@torch.inference_mode()
def encode(encoder: AllianceEncoder, sensor: Sensor, images: list[Tensor], by: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Tokens (tiles, rows, columns, groups * d) of images, standardised by a mean and deviation each."""
    ready = torch.stack([standardise(image, *each)[0] for image, each in zip(images, by, strict=True)])
    maps = encoder.forward_intermediates(ready, sensor, [-1], groups="keep", standardised=True)[0]
    return rearrange(maps, "b g d y x -> b y x (g d)").float()


def probe(tokens: Tensor, labels: Tensor) -> Found:
    """Accuracy on the right halves of what is learnt on the left ones."""
    half = labels.shape[-1] // 2
    sides = []
    for part in (slice(None, half), slice(half, None)):
        chosen = labels[:, :, part] >= 0
        sides.append(Labelled(tokens[:, :, part][chosen], labels[:, :, part][chosen].numpy()))
    train, test = sides
    return interval(linear(train, test.features) == test.labels)


if __name__ == "__main__":
    main()
