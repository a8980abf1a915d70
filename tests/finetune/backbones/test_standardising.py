"""By whose means and deviations an encoder's images are standardised, in every task that has one."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alliance.checkpoint import load_encoder, save_encoder
from alliance.errors import InputError
from alliance.sensors import Sensor
from alliance.sensors.catalog import find_sensor
from datasets.imagery.images import ImageSource
from datasets.synthetic.chips import write_chips
from datasets.synthetic.domains import write_yellow_river
from datasets.synthetic.labelled_scenes import write_labelled
from engine.ranks import World
from engine.settings import parse_settings
from engine.signals import StopRequest
from engine.watch import Watch
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig, TransferredEncoder
from finetune.backbones.standardising import encoder_statistics
from finetune.tasks.chips_config import SceneConfig
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.classification_seeds import open_data
from finetune.tasks.crossdomain import CrossDomain
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.scene import Scene
from finetune.tasks.segmentation import EncoderSegmentation
from finetune.tasks.segmentation_config import SegmentConfig
from tests.helpers.listening import heard
from tests.helpers.models import sensor_of, tiny_model
from tests.helpers.runs import ROOT

CONFIGS = ROOT / "configs" / "finetune"
WORLD = World(0, 1, torch.device("cpu"), Watch(0, 1), StopRequest())
FOUR = sensor_of(4, name="four", groups=((0, 1, 2), (3,))).with_statistics([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8])
HEIGHT = sensor_of(1, name="height").with_statistics([2.0], [3.0])
RGB = find_sensor("rgb-uint8").with_statistics([0.2, 0.3, 0.4], [0.1, 0.15, 0.2])
SAR = find_sensor("sentinel1-grd-db").with_statistics([-11.0, -18.0], [4.0, 5.0])


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny encoder that was trained with four sensors."""
    return str(
        save_encoder(
            tiny_model(sensors=[FOUR, RGB, SAR, HEIGHT]).encoder, tmp_path_factory.mktemp("export") / "encoder"
        )
    )


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What is warned of."""
    with heard(logging.WARNING) as lines:
        yield lines


def config(sensor: InputSensor, **changes: Any) -> TransferConfig:
    return TransferConfig(sensors={"image": sensor}, **changes)


def features(source: ImageSource, stored: Tensor, transfer: TransferConfig, export: str) -> Tensor:
    """Of an image as a task's network gives it to the encoder."""
    module = TransferredEncoder(transfer, {"image": stored.shape[-3]}, checkpoint=export).eval()
    with torch.no_grad():
        return module.features(source.standardise(stored), "image").tokens


def own_features(physical: Tensor, sensor: Sensor, export: str) -> Tensor:
    """What the library gives for the same image."""
    with torch.no_grad():
        return load_encoder(export)(physical, sensor).tokens


def numbers(c: int, *, seed: int = 0) -> Tensor:
    image = torch.rand(2, c, 16, 16, generator=torch.Generator().manual_seed(seed))
    image[0, 1, :4, :4] = torch.nan  # a band of these pixels is missing
    return image


def test_features_of_a_frozen_encoder_are_those_that_the_library_gives(export: str) -> None:
    given = ImageSource(bands=(1, 2, 3, 4), mean=(9.0,) * 4, std=(3.0,) * 4)
    transfer = config(InputSensor(sensor="four"))
    source = encoder_statistics(transfer, export, {"image": given})["image"]
    image = numbers(4)
    assert torch.equal(features(source, image, transfer, export), own_features(image, FOUR, export))
    assert not torch.allclose(features(given, image, transfer, export), own_features(image, FOUR, export), atol=1e-2)


def test_bands_in_another_order_and_stored_bytes_are_standardised_as_their_sensor(export: str) -> None:
    """A set without a sensor holds bytes of bands 3, 2, 1; the sensor's unit is the fraction of 255."""
    given = ImageSource(bands=(3, 2, 1), dtype="uint8", statistics="dataset")
    transfer = config(InputSensor(sensor="rgb-uint8", bands=("B", "G", "R")))
    source = encoder_statistics(transfer, export, {"image": given})["image"]
    assert source.mean == pytest.approx((0.4 * 255, 0.3 * 255, 0.2 * 255)) and source.std[0] == pytest.approx(0.2 * 255)
    stored = (numbers(3) * 255).round()
    physical = RGB.to_physical(stored)
    torch.testing.assert_close(
        features(source, stored.flip(1), transfer, export), own_features(physical, RGB, export), atol=1e-4, rtol=1e-4
    )


def test_numbers_in_the_sensors_unit_need_no_conversion(export: str) -> None:
    source = encoder_statistics(
        TransferConfig(), export, {"image": ImageSource(sensor="sentinel1-grd-db", bands=("VH",))}
    )
    assert (source["image"].mean, source["image"].std) == ((-18.0,), (5.0,))


@pytest.mark.parametrize(
    ("changes", "checkpoint", "as_sensor"),
    [
        ({}, True, True), ({"mode": "full"}, True, False), ({"mode": "lora"}, True, False), ({}, False, False),
        ({"statistics": "data"}, True, False), ({"statistics": "sensor", "mode": "full"}, True, True),
    ],
)  # fmt: skip
def test_whose_statistics_are_taken(changes: Any, checkpoint: bool, as_sensor: bool, export: str) -> None:
    given = ImageSource(sensor="rgb-uint8", mean=(0.5,) * 3, std=(0.2,) * 3)
    source = encoder_statistics(TransferConfig(**changes), export if checkpoint else "", {"image": given})["image"]
    assert source.moments == (((0.2, 0.3, 0.4), (0.1, 0.15, 0.2)) if as_sensor else given.moments)


UNFIT: dict[str, tuple[ImageSource, InputSensor | None, str]] = {
    "unknown to the encoder": (ImageSource(sensor="naip", mean=(0.5,) * 4, std=(1.0,) * 4), None, "naip has no mean and std; the encoder was trained with four, rgb-uint8"),
    "logarithms": (ImageSource(bands=(1, 2), log=True, mean=(1.0,) * 2, std=(1.0,) * 2), InputSensor(sensor="sentinel1-grd-db"), "logarithms, not the dB"),
    "another unit": (ImageSource(sensor="sentinel1-grd-linear", mean=(1.0,) * 2, std=(1.0,) * 2), InputSensor(sensor="sentinel1-grd-db"), "it holds .*, sensor sentinel1-grd-db dB"),
    "channels that are not read": (ImageSource(bands=(1, 1, 1, 1), statistics="dataset"), InputSensor(sensor="sentinel1-grd-db", channels=(1, 3)), "does not read channel 0"),
    "wavelengths alone": (ImageSource(bands=(1, 2, 3), mean=(1.0,) * 3, std=(1.0,) * 3), InputSensor(sensor="cube", wavelengths=(400, 900)), "cube has no mean"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "sensor", "message"), UNFIT.values(), ids=UNFIT)
def test_what_no_sensor_fits_keeps_its_own_or_is_refused(
    given: ImageSource, sensor: InputSensor | None, message: str, export: str
) -> None:
    sensors = {"sensors": {"image": sensor}} if sensor else {}
    assert encoder_statistics(TransferConfig(**sensors), export, {"image": given})["image"] is given
    with pytest.raises(InputError, match=f"encoder.statistics is sensor, but image cannot.*{message}.*set it to data"):
        encoder_statistics(TransferConfig(statistics="sensor", **sensors), export, {"image": given})


# Every task


def test_scenes_are_standardised_as_the_encoders_sensor_without_measuring(
    export: str, tmp_path: Path, warnings: list[str]
) -> None:
    write_chips(tmp_path / "chips", chips=12, size=16, classes=3)
    options = ["--run.dir", "run", "--data.path", str(tmp_path / "chips"), "--checkpoint", export]
    job = Scene(parse_settings(SceneConfig, "", options), WORLD)
    assert job.source.moments == ((0.2, 0.3, 0.4), (0.1, 0.15, 0.2)) and not warnings
    measured = Scene(parse_settings(SceneConfig, "", [*options, "--model.encoder.statistics", "data"]), WORLD)
    assert measured.source.mean != job.source.mean and not warnings  # of the data set, not of each scene


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("years")
    write_yellow_river(folder, size=64)
    return folder


def domain_options(years: Path, export: str, *more: str) -> list[str]:
    return ["--config", str(CONFIGS / "crossdomain_yellow_river.yaml"), "--data.path", str(years), "--data.window", "32",
            "--data.stride", "32", "--augment.crop", "32", "--run.dir", "run", "--checkpoint", export, "--model.encoder.mode",
            "frozen", "--model.encoder.sensors", "{optical: {sensor: four}}", *more]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "warned", "measured"),
    [
        ((), False, False),
        (("--model.encoder.statistics", "data"), True, True),
        (("--model.encoder.statistics", "data", "--data.statistics", "source"), False, True),
        (("--model.encoder.statistics", "data", "--model.encoder.mode", "full"), False, True),
    ],
)
def test_domains_that_are_standardised_apart_are_warned_of_once(
    more: tuple[str, ...], warned: bool, measured: bool, export: str, years: Path, warnings: list[str]
) -> None:
    job = CrossDomain(parse_settings(CrossDomainConfig, "", domain_options(years, export, *more)), WORLD)
    told = [line for line in warnings if "scene's own statistics" in line]
    assert len(told) == warned and all("optical is standardised" in line and "\n" not in line for line in told)
    of_sensor = (
        job.source.image("optical").moments
        == job.described.image("optical").moments
        == ((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    )
    assert of_sensor != measured


def test_a_segmentation_takes_the_statistics_of_the_encoders_sensors(
    export: str, years: Path, warnings: list[str]
) -> None:
    options = ["--data.set", "yellow-river", "--data.path", str(years), "--data.train", "2021", "--data.evaluate", "2022",
               "--data.window", "32", "--augment.crop", "32", "--method", "encoder", "--dense.encoder.sensors", "{optical: {sensor: four}}",
               "--checkpoint", export, "--run.dir", "run"]  # fmt: skip
    job = EncoderSegmentation(parse_settings(SegmentConfig, "", options), WORLD)
    assert job.described.image("optical").std == (0.5, 0.6, 0.7, 0.8) and not warnings


def test_pixels_of_scenes_are_standardised_by_the_sensor_or_warned_of(
    export: str, tmp_path: Path, warnings: list[str]
) -> None:
    """What the encoder reads band by band is by its sensor; the other image stays by the scene."""
    write_labelled("houston2013", tmp_path / "scene", height=48, width=64, classes=3)
    given = ["--config", str(CONFIGS / "classify_houston2013.yaml"), "--run.dir", "run", "--data.path",
             str(tmp_path / "scene"), "--checkpoint", export]  # fmt: skip

    def opened(statistics: str) -> Any:
        encoder = f"{{statistics: {statistics}, sensors: {{active: {{sensor: height}}}}}}"
        return open_data(parse_settings(ClassifyConfig, "", [*given, "--model.encoder", encoder]))

    of_sensor = opened("auto")
    assert not warnings
    of_scene = opened("data")
    assert len(warnings) == 1 and warnings[0].startswith("active is standardised by each scene's own statistics")
    assert of_sensor.preprocessing["active"].mean.tolist() == [2.0]
    assert np.array_equal(of_sensor.preprocessing["passive"].mean, of_scene.preprocessing["passive"].mean)
    own = of_scene.preprocessing["active"]
    physical = of_scene.active.numpy() * own.std + own.mean
    np.testing.assert_allclose(of_sensor.active.numpy(), (physical - 2) / 3, atol=1e-4)


def test_components_of_a_scene_are_no_sensors_numbers(export: str, tmp_path: Path, warnings: list[str]) -> None:
    write_labelled("augsburg", tmp_path / "scene", height=48, width=64, classes=3)
    given = ["--config", str(CONFIGS / "classify_augsburg.yaml"), "--run.dir", "run", "--data.path", str(tmp_path / "scene"),
             "--checkpoint", export, "--data.components", "4"]  # fmt: skip
    for statistics in ("auto", "sensor"):
        encoder = f"{{statistics: {statistics}, sensors: {{passive: {{sensor: four}}}}}}"
        config = parse_settings(ClassifyConfig, "", [*given, "--model.encoder", encoder])
        if statistics == "auto":
            open_data(config)
        else:
            with pytest.raises(
                InputError, match="the input passive is of principal components; name spectral, or data"
            ):
                open_data(config)
    assert len(warnings) == 1 and warnings[0].startswith("passive is standardised by each scene's own")
