"""launch/prepare.py on trees shaped like the releases: tiles as rasterio reads them, defects named, safe to repeat."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from datasets.labelled.parse import find_set
from datasets.labelled.tiles import Tiles
from datasets.releases import cut as tiling
from datasets.releases.command import main
from datasets.releases.cut import Grid
from datasets.releases.facts import WHU_DOUBTED, WHU_SPLIT
from datasets.releases.prepare import draw_split
from datasets.synthetic.pair_trees import NARROW, NO_SAR, WHU_SCENES, write_ddhr, write_plain, write_whu

TILE = 32


def run(kind: str, root: Path, out: Path, *arguments: object) -> dict[str, Any]:
    """Run the command and return the manifest."""
    main([kind, str(root), str(out), "--tile", str(TILE), *map(str, arguments)])
    return json.loads((out / "manifest.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1, lines
    return lines[0]


def read(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read()


@pytest.fixture(scope="module")
def whu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whu")
    write_whu(root)
    return root


@pytest.fixture(scope="module")
def prepared(whu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "tiles"
    run("whu-opt-sar", whu, out)
    return out


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_are_windows_of_the_scenes(whu: Path, prepared: Path):
    """80 x 112 pixels hold 2 x 3 tiles of 32; what is left over is dropped."""
    key, window = "NH49E001013_r00032_c00064", np.s_[:, 32:64, 64:96]
    for role in ("optical", "sar"):
        assert np.array_equal(read(prepared / role / f"{key}.tif"), read(whu / role / "NH49E001013.tif")[window])
    label = read(prepared / "label" / f"{key}.tif")
    assert np.array_equal(label * 10 + 10, read(whu / "lbl" / "NH49E001013.tif")[window])
    assert set(read(prepared / "label" / "NH49E001013_r00000_c00000.tif")[0, 0]) == {255}
    with rasterio.open(prepared / "label" / f"{key}.tif") as file:
        assert file.colormap(1)[3] == (0, 0, 255, 255)  # water
    with rasterio.open(prepared / "optical" / f"{key}.tif") as file:
        assert rasterio.enums.ColorInterp.alpha not in file.colorinterp


def test_the_published_scenes_make_the_splits(prepared: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    train, test = ((prepared / f"{split}.txt").read_text().split() for split in ("train", "test"))
    assert {key[:11] for key in train} == {"NH49E001013", NARROW}
    assert {key[:11] for key in test} == {"NH49E001014", "NH50E007002"}
    assert (len(train), len(test)) == (12, 12)
    counts = {split: (each["scenes"], each["tiles"]) for split, each in manifest["splits"].items()}
    assert counts == {"train": (2, 12), "test": (2, 12)}
    assert manifest["sizes"] == {"80 x 112": 3, "80 x 111": 1}
    assert manifest["files"] == {"optical": 5, "sar": 4, "label": 5}


def test_the_manifest_counts_pixels_and_measures_the_training_tiles(prepared: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    keys = (prepared / "train.txt").read_text().split()
    tiles = [Tiles(find_set(prepared / "pairs.yaml"), "train")[index] for index in range(len(keys))]
    labels = np.stack([tile.label for tile in tiles])
    pixels = manifest["splits"]["train"]["pixels"]
    assert pixels["ignored"] == (labels == 255).sum() == 2 * 3 * TILE  # the first row of both scenes
    assert [pixels[name] for name in manifest["classes"]] == [(labels == index).sum() for index in range(7)]
    optical = np.stack([tile.images["optical"] for tile in tiles])
    source = find_set(prepared / "pairs.yaml").images["optical"]
    assert source.mean == pytest.approx(optical.mean(axis=(0, 2, 3)), rel=1e-5)
    assert source.std == pytest.approx(optical.std(axis=(0, 2, 3)), rel=1e-4)
    assert tiles[0].images["sar"].shape == (1, TILE, TILE)


def test_known_defects_are_named(prepared: Path):
    manifest = json.loads((prepared / "manifest.json").read_text())
    warnings = "\n".join(manifest["warnings"])
    assert f"1 scene without all three files: {NO_SAR}: no sar file" in warnings
    assert "4 of 100 scenes are complete; the copy on Google Drive" in warnings
    assert "of the published split, 96 scenes not found" in warnings
    assert {"file": NO_SAR, "reason": "no sar file"} in manifest["skipped"]


def test_the_last_tiles_may_be_shifted_inwards(whu: Path, tmp_path: Path):
    manifest = run("whu-opt-sar", whu, tmp_path / "out", "--edges", "shift")
    keys = (tmp_path / "out" / "train.txt").read_text().split()
    assert manifest["splits"]["train"]["tiles"] == 2 * 3 * 4
    assert {key[-6:] for key in keys if NARROW in key} == {"c00000", "c00032", "c00064", "c00079"}
    assert {key[-13:-7] for key in keys} == {"r00000", "r00032", "r00048"}


def test_real_scene_sizes_give_the_published_numbers_of_tiles():
    for width in (5555, 5556):
        assert len(Grid(tile=512).windows(3704, width)) == 70
        assert len(Grid(tile=512, edges="shift").windows(3704, width)) == 88
        assert len(Grid(tile=256).windows(3704, width)) == 294
    assert {split: len(scenes) for split, scenes in WHU_SPLIT.items()} == {"train": 80, "test": 20}
    scenes = {*WHU_SPLIT["train"], *WHU_SPLIT["test"]}
    assert len(scenes) == 100
    assert set(WHU_DOUBTED) <= scenes


def test_tiles_may_be_drawn_at_random(whu: Path, tmp_path: Path):
    manifest = run("whu-opt-sar", whu, tmp_path / "out", "--split", "tiles", "--seed", 1)
    splits = [set((tmp_path / "out" / f"{split}.txt").read_text().split()) for split in ("train", "test")]
    assert [len(keys) for keys in splits] == [19, 5]  # of 24: 8 to 2
    assert not splits[0] & splits[1]
    assert any("scores are optimistic" in warning for warning in manifest["warnings"])


def test_a_random_split_of_the_real_number_of_tiles_is_the_published_one():
    keys = [f"{number}" for number in range(7000)]
    drawn = draw_split(keys, {"train": 0.8, "test": 0.2}, 0)
    assert (len(drawn["train"]), len(drawn["test"])) == (5600, 1400)
    assert sorted(drawn["train"] + drawn["test"]) == sorted(keys)
    assert drawn == draw_split(reversed(keys), {"train": 0.8, "test": 0.2}, 0)
    assert drawn != draw_split(keys, {"train": 0.8, "test": 0.2}, 1)


def test_constants_of_the_public_code_come_with_its_band_order(whu: Path, prepared: Path, tmp_path: Path):
    run("whu-opt-sar", whu, tmp_path / "out", "--constants", "released")
    pair = Tiles(find_set(tmp_path / "out" / "pairs.yaml"), "train")[0]
    plain = Tiles(find_set(prepared / "pairs.yaml"), "train")[0]
    assert pair.images["optical"].equal(plain.images["optical"].flip(0))
    assert pair.images["sar"].equal(plain.images["sar"].expand(3, -1, -1))


def test_an_interrupted_command_goes_on_and_a_finished_one_changes_nothing(
    whu: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out, made = tmp_path / "out", []
    write = tiling._write_tile

    def stop_at_the_twentieth(path: Path, *rest: Any) -> None:
        made.append(path)
        if len(made) == 20:
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(tiling, "_write_tile", stop_at_the_twentieth)
    with pytest.raises(SystemExit) as stop:
        run("whu-opt-sar", whu, out)
    assert stop.value.code == 130
    assert "give the same command again to go on" in capsys.readouterr().err
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    run("whu-opt-sar", whu, out)
    assert len(made) == 20 + 72 - 18  # of 24 tiles of 3 files, 6 were complete
    files = [path.relative_to(prepared) for path in sorted(prepared.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(out) for path in sorted(out.rglob("*")) if path.is_file()]
    assert all((out / file).read_bytes() == (prepared / file).read_bytes() for file in files)
    run("whu-opt-sar", whu, out)
    assert len(made) == 74


def test_another_grid_needs_another_folder(whu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run("whu-opt-sar", whu, tmp_path / "out")
    line = refused(capsys, "whu-opt-sar", whu, tmp_path / "out", "--tile", 16)
    assert "holds tiles with tile 32, not 16; name another folder or pass --overwrite" in line
    main(["whu-opt-sar", str(whu), str(tmp_path / "out"), "--tile", "16", "--overwrite"])
    assert read(tmp_path / "out" / "label" / "NH49E001013_r00064_c00096.tif").shape == (1, 16, 16)
    assert not (tmp_path / "out" / "label" / "NH49E001013_r00032_c00064.tmp").exists()


def test_folders_of_others_and_scenes_smaller_than_a_tile_are_refused(
    whu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "manifest.json").write_text("{}")
    line = refused(capsys, "whu-opt-sar", whu, tmp_path, "--overwrite")
    assert line.endswith("holds other files (manifest.json); name another folder")
    line = refused(capsys, "whu-opt-sar", whu, tmp_path / "out")
    assert "no tile could be made: " in line
    assert "80 x 112 pixels, smaller than a tile of 512" in line


def test_scenes_that_are_not_what_they_should_be_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "whu"
    scenes = write_whu(root)
    write_plain(root / "lbl" / f"{WHU_SCENES[0]}.tif", scenes[WHU_SCENES[0]].optical[:1])
    write_plain(root / "sar" / f"{WHU_SCENES[1]}.tif", scenes[WHU_SCENES[1]].sar[:, :60])
    write_plain(root / "sar" / f"{NARROW}.tif", scenes[NARROW].optical)
    write_plain(root / "sar" / f"{NO_SAR}.tif", scenes[NO_SAR].sar.astype(np.uint16))
    (root / "optical" / f"{WHU_SCENES[4]}.tif").write_bytes(b"half a download")
    line = refused(capsys, "whu-opt-sar", root, tmp_path / "out", "--tile", TILE)
    assert line.startswith("error: no tile could be made: ")
    write_plain(root / "lbl" / f"{WHU_SCENES[0]}.tif", scenes[WHU_SCENES[0]].label[None] + 1)
    manifest = run("whu-opt-sar", root, tmp_path / "out")
    reasons = {skip["file"]: skip["reason"] for skip in manifest["skipped"]}
    assert reasons[WHU_SCENES[1]].startswith("optical, SAR and labels have 80 x 112, 60 x 112, 80 x 112 pixels")
    assert reasons[NARROW] == "the SAR file has 4 bands that differ, not one; are folders mixed up?"
    assert reasons[NO_SAR] == "the sar file holds uint16; the release has 8-bit numbers"
    assert "cannot be read" in reasons[WHU_SCENES[4]]
    assert "split test is empty" in manifest["warnings"]
    assert any("1 scene: labels are 1, 2, ... instead of 10, 20, ..." in warning for warning in manifest["warnings"])
    tile = f"{WHU_SCENES[0]}_r00000_c00000.tif"
    assert np.array_equal(read(tmp_path / "out" / "label" / tile)[0], scenes[WHU_SCENES[0]].label[:TILE, :TILE])


def test_an_image_in_the_label_folder_is_told_by_its_values(tmp_path: Path):
    root = tmp_path / "whu"
    scenes = write_whu(root)
    write_plain(root / "lbl" / f"{WHU_SCENES[0]}.tif", scenes[WHU_SCENES[0]].sar)
    write_plain(root / "lbl" / f"{WHU_SCENES[1]}.tif", scenes[WHU_SCENES[1]].optical[:3])
    manifest = run("whu-opt-sar", root, tmp_path / "out")
    reasons = {skip["file"]: skip["reason"] for skip in manifest["skipped"]}
    assert "which are no class; is this the folder of the labels?" in reasons[WHU_SCENES[0]]
    assert "the label file has 3 bands, not one" in reasons[WHU_SCENES[1]]


def test_files_that_differ_by_one_column_are_cut_to_the_common_part(tmp_path: Path):
    root = tmp_path / "whu"
    scenes = write_whu(root)
    name = WHU_SCENES[0]
    write_plain(root / "lbl" / f"{name}.tif", 10 * scenes[name].label[None, :, :-1] + 10)
    manifest = run("whu-opt-sar", root, tmp_path / "out", "--edges", "shift")
    assert any("sizes differ by one pixel" in warning for warning in manifest["warnings"])
    assert read(tmp_path / "out" / "optical" / f"{name}_r00000_c00079.tif").shape == (4, TILE, TILE)


def test_other_label_folders_are_named_and_not_used(tmp_path: Path):
    root = tmp_path / "download" / "whu"
    write_whu(root)
    shutil.copytree(root / "sar", root / "intro" / "lbl")
    shutil.copytree(root / "sar", root / "prediction")
    (root / "optical").rename(root / "nested")
    (root / "optical").mkdir()
    (root / "nested").rename(root / "optical" / "optical")
    manifest = run("whu-opt-sar", tmp_path / "download", tmp_path / "out")
    assert manifest["splits"]["test"]["tiles"] == 12
    assert any(line.startswith("intro/lbl, prediction: not used") for line in manifest["warnings"])


def test_georeferenced_scenes_make_georeferenced_tiles(tmp_path: Path):
    root, name = tmp_path / "whu", WHU_SCENES[0]
    scenes = write_whu(root)
    place = {"crs": "EPSG:32649", "transform": rasterio.Affine(5, 0, 500_000, 0, -5, 3_400_000)}
    shifted = {"crs": "EPSG:32649", "transform": rasterio.Affine(5, 0, 500_010, 0, -5, 3_400_000)}
    for scene, sar_place in ((name, place), (WHU_SCENES[1], shifted)):
        write_plain(root / "optical" / f"{scene}.tif", scenes[scene].optical, **place)
        write_plain(root / "sar" / f"{scene}.tif", scenes[scene].sar, **sar_place)
        write_plain(root / "lbl" / f"{scene}.tif", 10 * scenes[scene].label[None] + 10, **place)
    manifest = run("whu-opt-sar", root, tmp_path / "out")
    for role in ("optical", "sar", "label"):
        with rasterio.open(tmp_path / "out" / role / f"{name}_r00032_c00064.tif") as file:
            assert file.crs == rasterio.CRS.from_epsg(32649)
            assert file.transform[:6] == (5, 0, 500_000 + 64 * 5, 0, -5, 3_400_000 - 32 * 5)
    (skip,) = [each for each in manifest["skipped"] if each["file"] == WHU_SCENES[1]]
    assert skip["reason"].startswith(
        "optical and sar lie on different map grids: footprints differ by 10 map units, 2 pix"
    )


def test_ddhr_sk_is_split_by_its_lists(tmp_path: Path):
    made = write_ddhr(tmp_path / "ddhr")
    (tmp_path / "ddhr" / "korea" / "256_cloud" / "GF3" / "6.jpg").unlink()
    manifest = run("ddhr-sk", tmp_path / "ddhr", tmp_path / "out")
    assert (tmp_path / "out" / "train.txt").read_text().split() == ["1", "3", "5"]
    assert (tmp_path / "out" / "test.txt").read_text().split() == ["2", "4"]
    tiles = Tiles(find_set(tmp_path / "out" / "pairs.yaml"), "test")
    assert np.array_equal(tiles[0].label[1:], made["2"].label[1:])
    assert set(tiles[0].label[0].tolist()) == {255}
    assert np.abs(tiles[0].images["sar"][0].numpy() - made["2"].sar[0]).mean() < 12  # JPEG
    assert tiles[0].images["sar"].shape == (1, TILE, TILE)
    assert list(manifest["classes"]) == ["buildings", "roads", "farmland", "water", "greenery"]
    assert "5 of 6173 scenes are complete" in manifest["warnings"]


def test_ddhr_sk_without_lists_says_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_ddhr(tmp_path / "ddhr")
    for name in ("trainM_list.txt", "valM_list.txt"):
        (tmp_path / "ddhr" / name).rename(tmp_path / name)
    line = refused(capsys, "ddhr-sk", tmp_path / "ddhr", tmp_path / "out")
    assert "holds no list trainM_list.txt; take it from the authors' repository and pass --lists DIR" in line
    assert run("ddhr-sk", tmp_path / "ddhr", tmp_path / "out", "--lists", tmp_path)["splits"]["train"]["tiles"] == 3
    halves = run("ddhr-sk", tmp_path / "ddhr", tmp_path / "half", "--split", "tiles")["splits"]
    assert {split: each["tiles"] for split, each in halves.items()} == {"train": 3, "test": 3}


def test_folders_that_are_not_the_release_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "optical").mkdir()
    line = refused(capsys, "whu-opt-sar", tmp_path, tmp_path / "out")
    assert "holds optical|opt|image, sar, lbl|label|labels; unpack the archives side by side" in line
    assert "is not a folder" in refused(capsys, "ddhr-sk", tmp_path / "no", tmp_path / "out")
    write_ddhr(tmp_path)
    shutil.copytree(tmp_path / "korea", tmp_path / "xian")
    assert "holds ddhr-sk several times" in refused(capsys, "ddhr-sk", tmp_path, tmp_path / "out")


def test_check_reports_a_description(prepared: Path, capsys: pytest.CaptureFixture[str]):
    (prepared / "sar" / "NH49E001014_r00000_c00000.tif").rename(prepared / "moved.tif")
    try:
        main(["check", str(prepared / "pairs.yaml")])
    finally:
        (prepared / "moved.tif").rename(prepared / "sar" / "NH49E001014_r00000_c00000.tif")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 12 tiles; labelled pixels: farmland ")
    assert "  skipped NH49E001014_r00000_c00000: no sar file" in lines
    mean = find_set(prepared / "pairs.yaml").images["optical"].mean
    assert lines[-2].startswith(f"optical: bands: [1, 2, 3], mean: {[round(value, 4) for value in mean]}")


def test_check_refuses_what_is_no_description(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "no.yaml: there is no such file" in refused(capsys, "check", tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "not valid YAML" in refused(capsys, "check", tmp_path / "bad.yaml")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_of_a_scene_that_has_changed_are_not_kept(
    whu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whu, tmp_path / "raw")
    run("whu-opt-sar", tmp_path / "raw", tmp_path / "out")
    run("whu-opt-sar", tmp_path / "raw", tmp_path / "out")
    file = next(
        file for scene in WHU_SCENES for file in (tmp_path / "raw").rglob(f"{scene}.tif") if "optical" in str(file)
    )
    with rasterio.open(file, "r+") as image:
        image.write(255 - image.read())
    line = refused(capsys, "whu-opt-sar", tmp_path / "raw", tmp_path / "out", "--tile", TILE)
    assert f"1 scene whose files have changed since, the first is {file.stem}" in line and "--overwrite" in line
    run("whu-opt-sar", tmp_path / "raw", tmp_path / "out", "--overwrite")
    run("whu-opt-sar", tmp_path / "raw", tmp_path / "out")
