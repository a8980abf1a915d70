"""Labels, splits, scenes and checkpoints as users have them, by their kind: the right numbers, or a refusal with the mend.

The inputs stand beside the clone (`../shared/cases/tasks`); the right values are those that its scripts put into the files.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import scipy.io
import torch
import yaml

from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from datasets.labelled import SplitConfig, make_split, open_patches
from datasets.labelled.checks import refuse_shared, shared_samples
from datasets.labelled.parse import find_set
from datasets.labelled.scenes import LabelledScene, read_scenes
from datasets.labelled.tiles import Tiles
from datasets.releases.command import check
from datasets.releases.command import main as prepare
from finetune.conversion import main as convert
from finetune.mapping.images import ImageFile
from finetune.mapping.networks import SegmentationNetwork
from finetune.mapping.scene import SceneOptions, predict_scene
from finetune.model_files import Inputs, image_input, read_record
from finetune.pad.model import Pad, PadConfig, PadOutput
from finetune.pad.start import StartConfig, load_start
from tests.cases.conftest import Make

MINE = ("grass", "roof", "trees", "water")


def edited(folder: Path, **changes: Any) -> Path:
    """The description with some entries changed, beside the first."""
    path = folder / "pairs.yaml"
    record = yaml.safe_load(path.read_text())
    for name, value in changes.items():
        record[name] = {**record[name], **value} if isinstance(value, dict) and name != "classes" else value
    new = folder / f"{'_'.join(changes)}.yaml"
    new.write_text(yaml.safe_dump(record, sort_keys=False))
    return new


# T1: what label values and names mean


@pytest.mark.parametrize(
    ("number", "pattern", "label", "classes"),
    [
        ("01", r"255 is water, say so: label: \{values: \{0: 0, 255: 1\}\}", {"values": {0: 0, 255: 1}}, ("land", "water")),
        ("21", r"label: \{values: \{0: 255, 1: 0, 2: 1, 3: 2, 4: 3\}\}", {"values": {0: 255, 1: 0, 2: 1, 3: 2, 4: 3}}, ("bareland", "rangeland", "developed", "road")),
    ],
)  # fmt: skip
def test_a_value_that_is_no_class_stops_with_the_table_to_write(
    make_case: Make, number: str, pattern: str, label: dict[str, Any], classes: tuple[str, ...]
) -> None:
    folder = make_case("tasks", number)
    with pytest.raises(InputError, match=pattern):
        check(folder / "pairs.yaml", None)
    described = find_set(edited(folder, label=label))
    tiles = Tiles(described, "train")
    stored = np.concatenate([rasterio.open(files.label).read(1).ravel() for files in tiles.files])
    read = np.concatenate([tiles.label(index).ravel() for index in range(len(tiles))])
    values = {value: index for value, index in label["values"].items() if index != 255}
    for value, index in values.items():
        assert (read == index).sum() == (stored == value).sum()
    assert tuple(described.classes) == classes
    assert check(edited(folder, label=label), None)


def test_labels_from_zero_keep_their_first_class(make_case: Make) -> None:
    folder = make_case("tasks", "07")
    stored = scipy.io.loadmat(folder / "gt.mat")["gt"]
    (scene,) = read_scenes(find_set(folder / "mine.yaml", folder))
    for index in range(4):
        assert (scene.labels == index + 1).sum() == (stored == index).sum()
    assert (scene.labels == 0).sum() == (stored == 255).sum()


def test_names_by_number_are_taken_by_number(make_case: Make) -> None:
    folder = make_case("tasks", "27", "mapping")
    assert tuple(find_set(folder / "mine.yaml", folder).classes) == MINE


def test_one_image_alone_is_a_scene(make_case: Make) -> None:
    folder = make_case("tasks", "27", "alone")
    (scene,) = read_scenes(find_set(folder / "mine.yaml", folder))
    assert (len(scene.passive), len(scene.active)) == (24, 0)


def test_codes_of_a_nomenclature_are_classes(make_case: Make) -> None:
    folder = make_case("tasks", "22")
    stored = scipy.io.loadmat(folder / "gt.mat")["gt"]
    np.testing.assert_array_equal(scene_of(folder).labels, stored)


# T2: places of pairs


@pytest.mark.parametrize("kind", ["shift", "sar"])
def test_pairs_that_lie_elsewhere_are_refused(make_case: Make, kind: str) -> None:
    with pytest.raises(InputError, match=r"24 pixels"):
        check(make_case("tasks", "02", kind) / "pairs.yaml", None)


def test_labels_in_another_zone_are_refused(make_case: Make) -> None:
    with pytest.raises(InputError, match=r"EPSG:32649 and EPSG:32650"):
        check(make_case("tasks", "02", "zone") / "pairs.yaml", None)


def test_labels_without_crs_do_not_end_the_comparing(
    make_case: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare(
            ["whu-opt-sar", str(make_case("tasks", "04")), str(tmp_path / "out"), "--tile", "64", "--split", "tiles"]
        )
    assert ended.value.code == 2
    assert "optical and sar lie on different map grids" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "pattern"), [("shift", "3 pixels"), ("zone", "EPSG:32650"), ("half", "")])
def test_labels_of_a_scene_lie_where_its_images_lie(make_case: Make, kind: str, pattern: str) -> None:
    folder = make_case("tasks", "20", kind)
    described = find_set(folder / "mine.yaml", folder)
    if pattern:
        with pytest.raises(InputError, match=pattern):
            read_scenes(described)
    else:
        assert read_scenes(described)


# T3: test pairs in training


@pytest.mark.parametrize(("kind", "shared"), [("null", 6), ("overlap", 2)])
def test_test_pairs_in_training_are_counted_and_refused(make_case: Make, kind: str, shared: int) -> None:
    described = find_set(make_case("tasks", "03", kind) / "pairs.yaml")
    train, test = Tiles(described, "train"), Tiles(described, "test")
    assert len(shared_samples(train, test)) == shared
    with pytest.raises(InputError, match=f"{shared} of"):
        refuse_shared(train, test)


# T4: missing pixels


@pytest.mark.parametrize("kind", ["u16", "i16", "f32"])
def test_declared_nodata_is_no_number(make_case: Make, kind: str) -> None:
    described = find_set(make_case("tasks", "05", kind) / "pairs.yaml")
    tiles = Tiles(described, "train")
    for index, files in enumerate(tiles.files):
        image = tiles[index].images["optical"].numpy()
        with rasterio.open(files.paths["optical"]) as file:
            stored = file.read().astype(np.float32)
        assert np.isnan(image[:, :, :16]).all()
        np.testing.assert_array_equal(image[:, :, 16:], stored[:, :, 16:])


def test_transparent_pixels_get_no_class(make_case: Make, tmp_path: Path) -> None:
    folder = make_case("tasks", "11")
    for name in ("alpha", "collar"):
        map_pair(folder, name, tmp_path / f"{name}.tif")
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert (file.read(1) == 255).sum() == 96 * 40


@pytest.mark.parametrize(
    "name", ["tiny", "line", "row", "dot", "southup", "rotated", "quarter", "esri", "proj4", "noauth", "envi"]
)
def test_awkward_scenes_keep_their_place(make_case: Make, tmp_path: Path, name: str) -> None:
    folder = make_case("tasks", "11")
    map_pair(folder, name, tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(folder / f"{name}_opt.tif") as image:
        assert (file.transform, file.shape, file.crs) == (image.transform, image.shape, image.crs)


# T6: labelled pixels that are dropped


@pytest.mark.parametrize("kind", ["all", "some"])
def test_labelled_pixels_without_lidar_are_counted_by_class(make_case: Make, kind: str) -> None:
    folder = make_case("tasks", "06", kind)
    stored, lidar = scipy.io.loadmat(folder / "gt.mat")["gt"], scipy.io.loadmat(folder / "LiDAR.mat")["LiDAR"]
    (scene,) = read_scenes(find_set(folder / "mine.yaml", folder))
    lost = int(((stored == 4) & np.isnan(lidar)).sum())
    assert sum(scene.dropped.values()) == lost > 0
    assert (scene.labels == 4).sum() == (stored == 4).sum() - lost


@pytest.mark.parametrize("kind", ["plain", "southup", "int"])
def test_declared_holes_are_missing(make_case: Make, kind: str) -> None:
    scene = scene_of(make_case("tasks", "20", kind))
    assert 0 < sum(scene.dropped.values()) < 0.05 * 48 * 64
    assert np.nanmin(scene.active) > (-200 if kind == "int" else -2)


def test_undeclared_holes_are_refused_and_the_mend_works(make_case: Make) -> None:
    folder = make_case("tasks", "20", "undeclared")
    with pytest.raises(InputError, match=r"lidar\.tif holds -9999 in .*`nodata: -9999`"):
        scene_of(folder)
    record = yaml.safe_load((folder / "mine.yaml").read_text())
    (folder / "mended.yaml").write_text(yaml.safe_dump({**record, "images": {"active": {"nodata": -9999}}}))
    (scene,) = read_scenes(find_set(folder / "mended.yaml", folder))
    assert sum(scene.dropped.values()) == sum(scene_of(make_case("tasks", "20", "plain")).dropped.values())


# T7: axes and origins


@pytest.mark.parametrize("kind", ["full", "few"])
def test_lists_of_rows_and_columns_have_one_origin(make_case: Make, kind: str) -> None:
    folder = make_case("tasks", "09", kind)
    with np.load(folder / "truth.npz") as stored:
        truth = dict(stored)
    described = folder / "mine.yaml"
    if kind == "few":  # both origins fit: it has to be said
        with pytest.raises(InputError, match="say which in the layout: origin: 1"):
            read_scenes(find_set(described, folder))
        record = yaml.safe_load(described.read_text())
        record["layouts"][0]["origin"] = 1
        described = folder / "origin.yaml"
        described.write_text(yaml.safe_dump(record))
    (scene,) = read_scenes(find_set(described, folder))
    for name, mask in (("train", scene.train), ("test", scene.test)):
        assert mask is not None
        assert {tuple(place) for place in np.argwhere(mask)} == {tuple(place) for place in truth[name]}


@pytest.mark.parametrize("words", [("matlab",), ("python",), ("matlab", "square"), ("python", "square")])
def test_only_files_of_matlab_are_turned(make_case: Make, words: tuple[str, ...]) -> None:
    folder = make_case("tasks", "10", *words)
    scene = scene_of(folder)
    np.testing.assert_array_equal(scene.passive[0], np.load(folder / "truth_hsi.npy"))
    np.testing.assert_array_equal(scene.labels, np.load(folder / "truth_label.npy"))


@pytest.mark.parametrize(("kind", "pattern"), [("row", "49"), ("turned", "64"), ("leading", "")])
def test_sizes_of_one_scene(make_case: Make, kind: str, pattern: str) -> None:
    folder = make_case("tasks", "18", kind)
    if not pattern:
        assert scene_of(folder).labels.shape == (48, 64)
        return
    with pytest.raises(InputError, match=pattern):
        scene_of(folder)


# T8: control points


def test_a_scene_that_points_place_is_refused_with_gdalwarp(make_case: Make, tmp_path: Path) -> None:
    folder = make_case("tasks", "11")
    with pytest.raises(InputError, match="ground control points.*gdalwarp -tps"):
        map_pair(folder, "gcp", tmp_path / "map.tif")


# T10: read, or refused with a mend


@pytest.mark.parametrize("kind", ["int32", "int64", "float32", "rgb", "bands", "grey", "palette"])
def test_label_maps_of_every_kind(make_case: Make, kind: str) -> None:
    folder = make_case("tasks", "13", kind)
    path = folder / "pairs.yaml"
    if kind == "bands":
        with pytest.raises(InputError, match="label.band"):
            check(path, None)
        path = edited(folder, label={"band": 1})
    tiles = Tiles(find_set(path), "train")
    wanted = Tiles(find_set(make_case("tasks", "12") / "pairs.yaml"), "train")
    for index in range(len(tiles)):
        np.testing.assert_array_equal(tiles.label(index), wanted.label(index))


def test_labels_of_another_size_are_refused(make_case: Make) -> None:
    with pytest.raises(InputError, match="128 x 128|128, 128"):
        check(make_case("tasks", "13", "twice") / "pairs.yaml", None)


def test_a_class_without_pixels_is_said(make_case: Make) -> None:
    said = "\n".join(check(make_case("tasks", "14") / "pairs.yaml", None))
    assert "note: " in said and "snow" in said


@pytest.mark.parametrize("kind", ["small", "mixed"])
def test_small_tiles_are_read(make_case: Make, kind: str) -> None:
    described = find_set(make_case("tasks", "15", kind) / "pairs.yaml")
    assert len(Tiles(described, "test")[1].label) == 24


def test_broken_test_pairs_are_named(make_case: Make) -> None:
    """One pair is cut off, and one holds a single pixel of a value that is no class: damage, not another numbering."""
    said = "\n".join(check(make_case("tasks", "24") / "pairs.yaml", None))
    assert "test: 3 " in said
    assert "f: " in said and "h: " in said and "77" in said


def test_gaps_of_decibels_are_missing(make_case: Make) -> None:
    tiles = Tiles(find_set(make_case("tasks", "25") / "pairs.yaml"), "train")
    image = tiles[0].images["sar"].numpy()
    assert np.isnan(image[:, :, :12]).all() and not np.isinf(image).any()
    assert 0.8 < np.isfinite(image[:, :, 12:]).mean() < 1


@pytest.mark.parametrize("words", [(), ("slash",)])
def test_lists_as_windows_writes_them(make_case: Make, words: tuple[str, ...]) -> None:
    described = find_set(make_case("tasks", "26", *words) / "pairs.yaml")
    assert [len(Tiles(described, split)) for split in ("train", "test")] == [2, 2]


def test_one_file_with_many_keys(make_case: Make) -> None:
    folder = make_case("tasks", "29")
    scene, stored = scene_of(folder), scipy.io.loadmat(folder / "houston_gt.mat")
    assert scene.train is not None and scene.test is not None
    np.testing.assert_array_equal(np.where(scene.train, scene.labels, 0), stored["houston_gt_tr"])
    np.testing.assert_array_equal(np.where(scene.test, scene.labels, 0), stored["houston_gt_te"])


@pytest.mark.parametrize("name", ["fb.pt", "ddp.pth", "lightning.ckpt", "old.pth", "plain.pth"])
def test_weights_of_every_form_start_a_network(make_case: Make, name: str) -> None:
    folder = make_case("tasks", "17")
    plain = torch.load(folder / "plain.pth", weights_only=True)
    model = Pad(PadConfig(size="atto", classes=3))
    load_start(model, StartConfig(convnext=str(folder / name)))
    for encoder in model.encoders.values():
        own = encoder.state_dict()
        for key in ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "stages.3.blocks.1.mlp.grn.weight"):
            assert torch.equal(own[key].reshape(-1), plain[key].reshape(-1))


@pytest.mark.parametrize(("kind", "classes"), [("seven", 7), ("three", 3), ("ddp", 3), ("sar1", 7)])
def test_a_release_of_other_classes_keeps_their_names(make_case: Make, tmp_path: Path, kind: str, classes: int) -> None:
    file = make_case("tasks", "23", kind) / f"{kind}.pth"
    convert(["pad", str(file), str(tmp_path / "out"), "--size", "atto"])
    names = ("impervious", "building", "low vegetation", "tree", "car", "clutter", "water")[:classes]
    assert tuple(read_record(tmp_path / "out")["classes"]) == names


def scene_of(folder: Path) -> LabelledScene:
    (scene,) = read_scenes(find_set(folder / "mine.yaml", folder))
    return scene


def bytes_of(*bands: int) -> ImageSource:
    return ImageSource(bands=bands, dtype="uint8", mean=(100,) * len(bands), std=(50,) * len(bands))


def map_pair(folder: Path, name: str, out: Path) -> None:
    """By a network of two classes that says the same everywhere."""
    images = {"optical": image_input(bytes_of(1, 2, 3)), "sar": image_input(bytes_of(1))}
    network = SegmentationNetwork(ones, Inputs(classes={"city": (1, 2, 3), "rest": (4, 5, 6)}, images=images))
    files = {"optical": ImageFile(folder / f"{name}_opt.tif"), "sar": ImageFile(folder / f"{name}_sar.tif")}
    predict_scene(network, files, out, SceneOptions(window=64, overlap=16))


def ones(rgb: torch.Tensor, sar: torch.Tensor) -> PadOutput:
    logits = torch.zeros(len(rgb), 2, *rgb.shape[-2:])
    return PadOutput(logits, logits, torch.zeros(()))


@pytest.mark.parametrize(
    ("kind", "advice"), [("few", "ask for 2 "), ("untrained", "leave the class out with data.drop_classes")]
)
def test_a_class_with_too_few_samples_is_named_and_can_be_left_out(make_case: Make, kind: str, advice: str) -> None:
    folder = make_case("tasks", "19", kind)
    whole = open_patches(find_set(folder / "mine.yaml", folder), patch=3)
    config = SplitConfig(kind="official", per_class=8, validation=1)
    with pytest.raises(InputError, match=rf"class 4 \(water\).* has {3 if kind == 'few' else 0} pixels.*{advice}"):
        make_split(whole, config, seed=0)
    left = whole.without(["water"])
    split = make_split(left, config, seed=0)
    assert left.classes == MINE[:3]
    assert [len(part) for part in split[:2]] == [24, 3]
    if kind == "few":
        capped = make_split(whole, dataclasses.replace(config, cap=True), seed=0)
        assert (whole.label[capped.train] == 3).sum() == 3
