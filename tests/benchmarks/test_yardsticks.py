"""Tasks on real images: what stands for an image, which labels are drawn, what an interval is, what is learnt from."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.sensors import Band, Sensor
from alliance.sensors.catalog import find_sensor
from benchmarks.evidence import of_all_seeds
from benchmarks.yardsticks.chips import ChipTask, image_of, one_label, several_labels
from benchmarks.yardsticks.dense import DenseTask, Parts, Pieces, Question, draw_pixels, joined
from benchmarks.yardsticks.describing import all_places, image_statistics, read_by, whole_images
from benchmarks.yardsticks.imagery import SETS, blocks_of_pines, halves_of_terramesh, open_terramesh, sites_of_oscd
from benchmarks.yardsticks.pad import stacked_set
from benchmarks.yardsticks.scoring import Answers, change_f1, mean_iou, pixel_accuracy, share_right, summarise
from benchmarks.yardsticks.table import table
from datasets.chips.chip import ChipSet
from datasets.imagery.labels import IGNORE
from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Sample, Tiles

TWO = Sensor(
    name="two",
    bands=(Band(name="B04", wavelength=665, mean=0.0, std=1.0), Band(name="B08", wavelength=842, mean=0.0, std=1.0)),
)
SMALL = EncoderConfig(embed_dim=48, depth=1, heads=3, patch=4)


def test_a_finer_grating_has_its_power_in_a_later_ring() -> None:
    x = torch.arange(64)
    waves = torch.stack([torch.cos(2 * math.pi * cycles * x / 64).expand(64, 64) for cycles in (3, 14, 30)])
    found = image_statistics(waves[:, None])
    assert found.shape == (3, 2 + 8)
    rings = [(cycles - 1) * 8 // 32 for cycles in (3, 14, 30)]  # 32 frequencies, 1 to 32 cycles, four a ring
    assert (found[:, 2:].argmax(1)).tolist() == rings
    torch.testing.assert_close(found[:, 1], torch.full((3,), math.sqrt(0.5)), atol=1e-3, rtol=0)


def test_another_encoder_reads_the_bands_that_it_has_in_the_same_unit() -> None:
    galileo = AllianceEncoder(SMALL, [find_sensor("galileo")])
    images = find_sensor("sentinel2-l1c")
    own, places = read_by(galileo, images) or (None, [])
    assert own is not None and own.band_names == ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    assert [images.band_names[place] for place in places] == [*own.band_names]
    assert read_by(galileo, find_sensor("rgb-uint8")) is None  # its red is no reflectance
    assert read_by(AllianceEncoder(SMALL, [TWO]), TWO) == (TWO, [0, 1])


def test_places_of_an_encoder_are_those_of_its_windows() -> None:
    """An image of three by two windows: each place has the token of the window in which it lies."""
    encoder = AllianceEncoder(SMALL, [TWO]).eval()
    image = torch.randn(2, 3 * 64, 2 * 64, generator=torch.Generator().manual_seed(0))
    found = all_places({"own": encoder}, {"optical": TWO}, 4)["own"].of["optical"](image)
    with torch.no_grad():
        tokens = encoder(image[None, :, 64:128, 64:], TWO).tokens[0]
    expected = torch.cat([*tokens], dim=1).unflatten(0, (16, 16))  # groups side by side
    torch.testing.assert_close(found.unflatten(0, (48, 32))[16:32, 16:], expected, atol=1e-4, rtol=1e-4)
    assert list(whole_images({"own": encoder}, TWO)) == ["raw", "own"]


def test_further_read_outs_make_further_rows() -> None:
    encoder = AllianceEncoder(SMALL, [TWO]).eval()
    images = torch.randn(3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = whole_images({"own": encoder}, TWO, ("groups", "cls"))
    assert list(rows) == ["raw", "own", "own, cls"]
    with torch.no_grad():
        torch.testing.assert_close(rows["own, cls"](images), encoder(images, TWO).cls)
    assert rows["own"](images).shape == (3, 2 * 48 * len(TWO.group_indices))


def test_the_answers_of_seeds_are_draws_of_one_task() -> None:
    right = [torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])]
    parts = [[Answers("t", "OA", share_right, 2, "4 images", "4 images", {"raw": [each]})] for each in right]
    (found,) = of_all_seeds(parts)
    assert found.record(())["rows"]["raw"]["draws"] == [75.0, 50.0]
    assert found.record(())["rows"]["raw"]["score"][0] == 62.5


def test_draws_take_as_many_of_each_class_or_half_the_pieces() -> None:
    owner, labels = np.repeat(np.arange(10), 30), np.arange(300) % 3
    few = draw_pixels(owner, labels, 0, per_class=7)
    assert np.bincount(labels[few]).tolist() == [7, 7, 7]
    half = draw_pixels(owner, labels, 0, per_class=None)
    assert len(half) == 150 and len(set(owner[half])) == 5
    assert set(owner[draw_pixels(owner, labels, 1, per_class=None)]) != set(owner[half])


def test_two_dates_stand_beside_their_difference() -> None:
    dates = {"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([[3.0, 2.0]])}
    assert joined(Question("", ("a", "b"), change=True), dates).tolist() == [[1, 5, 3, 2, 2, 3]]
    assert joined(Question("", ("b", "a")), dates).tolist() == [[3, 2, 1, 5]]
    one = {"a": torch.tensor([[1.0]]), "b": torch.tensor([[3.0, 2.0]])}  # another sensor: other numbers
    assert joined(Question("", ("a", "b"), change=True), one).tolist() == [[1, 3, 2]]


def test_an_interval_is_that_of_the_images_and_a_gain_is_paired() -> None:
    """Of 400 images three in four right: the deviation of their share is sqrt(0.75 * 0.25 / 400). Equal rows differ by 0."""
    right = (torch.arange(400) % 4 > 0).double()
    found = summarise(
        {"raw": [right], "untrained": [right], "pretrained": [1 - right]}, share_right, ("raw", "untrained")
    )
    value, low, high = found["raw"]["score"]
    width = 2 * 1.96 * 100 * math.sqrt(0.75 * 0.25 / 400)
    assert value == 75.0 and high - low == pytest.approx(width, rel=0.15) and low < 75 < high
    assert found["untrained"]["above raw"] == [0.0, 0.0, 0.0]
    assert found["pretrained"]["above raw"][0] == -50.0
    assert summarise({"raw": [right[:3]]}, share_right, ())["raw"]["score"][1:] == [None, None]  # too few


def test_an_interval_counts_how_much_pretrainings_differ() -> None:
    all_right, none_right = torch.ones(50), torch.zeros(50)
    found = summarise({"raw": [none_right] * 2, "other": [all_right, none_right]}, share_right, ("raw",))
    assert found["other"]["score"] == [50.0, 0.0, 100.0]  # of two draws with replacement one in four is twice the first
    assert found["other"]["above raw"] == [50.0, 0.0, 100.0]
    assert found["raw"]["score"] == [0.0, 0.0, 0.0]
    alike = summarise({"raw": [none_right] * 2, "other": [all_right] * 2}, share_right, ("raw",))
    assert alike["other"]["above raw"] == [100.0, 100.0, 100.0]


def test_measures_of_hand_worked_matrices() -> None:
    matrix = torch.tensor([[[50, 10], [20, 20]]])
    assert pixel_accuracy(matrix) == 0.7
    assert change_f1(matrix) == pytest.approx(2 * 20 / (40 + 30))
    assert mean_iou(matrix) == pytest.approx((50 / 80 + 20 / 50) / 2)


def test_labels_that_features_tell_are_told_and_one_that_never_varies_has_its_share() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 3, generator=generator)
    targets = torch.stack([(features[:, 0] > 0).float(), torch.ones(80)], dim=1)
    found = several_labels(features[:40], targets[:40], features[40:], targets[40:], 0)
    assert found.shape == (40, 2, 2) and (found[:, 1, 1] == 1).all()
    assert ((found[:, 1, 0] > 0.5) == (found[:, 0, 0] > 0)).float().mean() > 0.9
    one = torch.eye(2)[targets[:, 0].long()]
    for kind in ("linear", "knn"):
        assert one_label(features[:40], one[:40], features[40:], one[40:], 0, kind).mean() > 0.9


def test_a_seed_is_told_by_several_draws_of_labels(tmp_path: Path) -> None:
    """The outcome of an image is the share of draws that are right: two draws of seed 1 are those of seeds 2 and 3."""
    draw = np.random.default_rng(0)
    for kind, level in (("dark", 100), ("light", 130)):
        for number in range(20):
            (tmp_path / kind).mkdir(exist_ok=True)
            image = np.clip(draw.normal(level, 40, (16, 16, 3)) + draw.normal(0, 25), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / kind / f"{number}.png")
    sensor = find_sensor("rgb-uint8").with_statistics([115.0] * 3, [40.0] * 3)
    task = ChipTask(
        title="t", sensor=sensor.name, size=16, per_class=(2,), data=ChipSet(path=".", image=image_of(sensor.name))
    )
    (one,) = task.answers(tmp_path, {}, {sensor.name: sensor}, [2, 3])
    (both,) = replace(task, draws=2).answers(tmp_path, {}, {sensor.name: sensor}, [1])
    assert 0.5 < both.rows["raw"][0].mean() < 1 and not torch.equal(*one.rows["raw"])
    torch.testing.assert_close(both.rows["raw"][0], (one.rows["raw"][0] + one.rows["raw"][1]) / 2)


def test_pixels_that_one_band_tells_are_told_and_the_table_says_so(tmp_path: Path) -> None:
    """Bright pixels are of class 1: values tell all of them, also where the encoder's patches are too coarse."""

    def piece(number: int) -> Sample:
        image = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(number))
        label = (image[0] > 0).long()
        label[0, :4] = IGNORE
        return Sample({"optical": image}, label)

    parts = Parts(Pieces(8, piece, list("abcdefgh")), Pieces(8, lambda n: piece(n + 8), list("abcdefgh")), 2)
    task = DenseTask(questions=(Question("bright", ("optical",), measured="OA"),), sensors={"optical": "two"},
                     open=lambda *_: parts, patch=4, draws=1)  # fmt: skip
    encoders = {"pretrained": AllianceEncoder(SMALL, [TWO]).eval()}
    (found,) = task.answers(tmp_path, encoders, {"two": TWO}, range(2))
    record = found.record()
    assert (record["learnt"], record["scored"]) == (
        "1008 pixels",
        "8 images",
    )  # four of eight pieces, 252 labelled each
    scores = {row: each["score"][0] for row, each in record["rows"].items()}
    assert list(scores) == ["raw", "pixels", "pretrained"] and scores["pixels"] > 97
    assert 50 < scores["raw"] < 80
    (one,), (both,) = (
        each.answers(tmp_path, encoders, {"two": TWO}, seeds)
        for each, seeds in ((task, [2, 3]), (replace(task, draws=2), [1]))
    )
    assert all(
        torch.equal(both.rows[row][0], one.rows[row][0] + one.rows[row][1]) for row in one.rows
    )  # draws of a seed, added up
    line = table({"set": {"tasks": [record], "steps": 3, "seconds": 1.0}}).splitlines()[2]
    assert line.startswith("| bright (OA; 2) | 1008 pixels / 8 images |") and f"| {scores['pixels']:.1f} (" in line


@pytest.mark.parametrize("name", ["dubai", "ombria_flood"])
def test_no_image_that_is_scored_is_learnt_from(name: str, shared_data: Path, tmp_path: Path) -> None:
    imagery = next(each for each in SETS if each.name == name)
    learnt = {file for files in imagery.unlabelled(shared_data / name, tmp_path).values() for file in files}
    tiles = Tiles(find_set(name.replace("_", "-"), shared_data / name), "test")
    scored = {file for files in tiles.files for file in files.paths.values()}
    assert learnt and scored and not learnt & scored


def test_nor_is_a_place_that_is_scored(shared_data: Path, tmp_path: Path) -> None:
    sites = {file.name for file in sites_of_oscd(shared_data / "oscd", tmp_path)["sentinel2-l1c"]}
    assert {"paris_t1.tif", "dubai_t1.tif"} <= sites and not sites & {"beirut_t1.tif", "beirut_t2.tif", "pisa_t1.tif"}
    images, labels = blocks_of_pines(shared_data / "indian_pines")
    assert len(images) == 81 and images[0].shape == (200, 16, 16)
    assert len(set(np.concatenate(labels).ravel().tolist()) - {IGNORE}) == 13  # as ../shared/data says of such blocks


def test_a_half_of_every_tile_is_learnt_from_and_the_other_is_scored(shared_data: Path, tmp_path: Path) -> None:
    files = halves_of_terramesh(shared_data / "terramesh_tiles", tmp_path)["sentinel2-l2a"]
    with rasterio.open(files[0]) as half, rasterio.open(shared_data / "terramesh_tiles/S2L2A" / files[0].name) as whole:
        assert np.array_equal(half.read(), whole.read()[..., :112]) and half.descriptions == whole.descriptions
    sensors = {"optical": find_sensor("sentinel2-l2a"), "sar": find_sensor("sentinel1-rtc-db")}
    parts = open_terramesh(shared_data / "terramesh_tiles", sensors)
    assert (parts.train.number, parts.test.number, parts.classes, len(set(parts.test.units))) == (24, 24, 7, 24)
    first, last = (each.read(0).images["optical"] for each in (parts.train, parts.test))
    with rasterio.open(shared_data / "terramesh_tiles/S2L2A/282D_485L_3_3.tif") as file:
        stored = torch.from_numpy(file.read().astype(np.float32)) / 1e4
    torch.testing.assert_close(first, stored[:, :56, :56])
    torch.testing.assert_close(last, stored[:, :56, 112:168])


def test_images_of_early_fusion_hold_both_in_order(shared_data: Path, tmp_path: Path) -> None:
    own = find_set("ombria-flood", shared_data / "ombria_flood")
    own = own.only({"optical": "optical", "sar": "sar"})
    stacked = Tiles(find_set(stacked_set(shared_data / "ombria_flood", tmp_path)), "test")
    apart = Tiles(own, "test")
    assert stacked.keys == apart.keys
    both = torch.cat([*apart[3].images.values()])
    assert torch.equal(stacked[3].images["optical"], both) and torch.equal(stacked[3].label, apart[3].label)
    assert stacked.described.image("optical").mean[3] == own.image("sar").mean[0]
