"""Registered pairs: found under any layout, read as stored, and refused with the mend where something does not fit."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from torch.utils.data import DataLoader

from alliance.errors import InputError
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set, write_set
from datasets.labelled.survey import survey, with_statistics
from datasets.labelled.tiles import Sample, Tiles
from datasets.synthetic.pair_trees import write_ddhr, write_plain
from tests.helpers.rasters import write_tiff

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "labelled"
KEYS = ("a", "b", "c")


def numbers(*shape: int, seed: int = 0, dtype: type = np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(high, size=shape, dtype=dtype)


def record(**changes: object) -> dict:
    """A description of three folders."""
    return {
        "name": "three",
        "optical": {"files": "opt/{key}.tif", "bands": [3, 1]},
        "sar": {"files": "sar", "bands": [1, 1]},
        "label": {"files": "lbl", "values": {0: 255, 10: 0, 20: 1}},
        "classes": {"dry": [1, 2, 3], "wet": [4, 5, 6]},
        "splits": {"all": None, "some": "some.txt"},
    } | changes


def described(folder: Path, **changes: object) -> LabelledSet:
    (folder / "pairs.yaml").write_text(yaml.safe_dump(record(**changes)))
    return find_set(folder / "pairs.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pairs of 6 x 8 pixels; labels 0, 10, 20."""
    for seed, key in enumerate(KEYS):
        write_tiff(tmp_path / "opt" / f"{key}.tif", numbers(4, 6, 8, seed=seed))
        write_tiff(tmp_path / "sar" / f"{key}.tif", numbers(1, 6, 8, seed=10 + seed))
        write_tiff(tmp_path / "lbl" / f"{key}.tif", 10 * numbers(1, 6, 8, seed=20 + seed, high=3))
    (tmp_path / "some.txt").write_text("c\n\na.tif\n")
    return tmp_path


def stored(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_a_pair_holds_the_stored_numbers_of_the_chosen_bands(folder: Path):
    tiles = Tiles(described(folder), "all")
    assert tiles.keys == list(KEYS)
    pair = tiles[1]
    assert (pair.images["optical"].dtype, pair.images["sar"].dtype, pair.label.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )
    assert np.array_equal(pair.images["optical"], stored(folder / "opt" / "b.tif")[[2, 0]])
    assert np.array_equal(pair.images["sar"], stored(folder / "sar" / "b.tif")[[0, 0]])
    expected = np.select([stored(folder / "lbl" / "b.tif")[0] == value for value in (10, 20)], [0, 1], 255)
    assert np.array_equal(pair.label, expected)


def test_a_list_sets_the_order_and_may_name_suffixes(folder: Path):
    assert Tiles(described(folder), "some").keys == ["c", "a"]


def test_pairs_travel_to_workers(folder: Path):
    tiles = Tiles(described(folder), "all")
    again = pickle.loads(pickle.dumps(tiles))  # noqa: TID251
    assert again[2].images["optical"].equal(tiles[2].images["optical"])
    batch = next(iter(DataLoader(tiles, batch_size=3)))
    assert isinstance(batch, Sample)
    assert batch.images["optical"].shape == (3, 2, 6, 8)


def test_a_written_description_reads_the_same(folder: Path, tmp_path: Path):
    pairs = described(folder, sar={"files": "sar", "bands": [1], "mean": [3.5], "std": [2.0], "nodata": 0})
    write_set(pairs, tmp_path / "copy.yaml")
    assert find_set(tmp_path / "copy.yaml") == pairs


def test_a_folder_per_split_may_nest(folder: Path):
    for role in ("opt", "sar", "lbl"):
        (folder / "test" / role).mkdir(parents=True)
        (folder / role / "a.tif").rename(folder / "test" / role / "x.tif")
    sources = {
        role: record()[name] | {"files": f"{{split}}/{role}"}
        for role, name in (("opt", "optical"), ("sar", "sar"), ("lbl", "label"))
    }
    pairs = described(folder, optical=sources["opt"], sar=sources["sar"], label=sources["lbl"], splits={"test": None})
    assert Tiles(pairs, "test").keys == ["x"]


def test_pad_and_asanet_layouts_are_read_as_they_are(tmp_path: Path):
    layouts = {
        "whu-opt-sar-pad": ("all_512x512/opt", "all_512x512/sar", "all_512x512/lbl8"),
        "whu-opt-sar-asanet": tuple(f"crop512/train/{name}_dir" for name in ("opt", "sar", "ann")),
    }
    lists = tmp_path / "splited_files" / "whuoptsar_train_(512, 512)_(512, 512).txt"
    lists.parent.mkdir()
    lists.write_text("NH49E001013_1\n")
    for name, (optical, sar, label) in layouts.items():
        write_plain(tmp_path / optical / "NH49E001013_1.tif", numbers(3, 4, 4))
        write_plain(tmp_path / sar / "NH49E001013_1.tif", numbers(1, 4, 4))
        write_plain(tmp_path / label / "NH49E001013_1.tif", np.arange(16, dtype=np.uint8).reshape(1, 4, 4) % 8)
        pairs = find_set(CONFIGS / f"{name}.yaml", root=tmp_path)
        pair = Tiles(pairs, "train")[0]
        assert np.array_equal(pair.images["optical"], numbers(3, 4, 4)[::-1])
        assert np.array_equal(pair.images["sar"], np.repeat(numbers(1, 4, 4), 3, axis=0))
        assert pair.label[:2].tolist() == [[255, 0, 1, 2], [3, 4, 5, 6]]
        assert pairs.images["optical"].standardise(pair.images["optical"]).shape == (3, 4, 4)


@pytest.mark.parametrize("root", ["korea/256_cloud", "korea"])
def test_lists_of_paths_of_another_machine_are_rooted_anew(tmp_path: Path, root: str):
    write_ddhr(tmp_path)
    for name in ("trainM_list.txt", "valM_list.txt"):
        (tmp_path / name).rename(tmp_path / root / name)
    tiles = Tiles(find_set(CONFIGS / "ddhr-sk.yaml", root=tmp_path / root), "train")
    assert [files.label.name for files in tiles.files] == ["1.png", "3.png", "5.png"]
    assert [files.paths["sar"].parent.name for files in tiles.files] == ["GF3"] * 3
    assert tiles[0].images["sar"].shape == (1, 32, 32)
    assert set(tiles[0].label[0].tolist()) == {255}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_description_reads(path: Path):
    assert find_set(path).root == CONFIGS


def test_pairs_that_lack_a_file_are_counted(folder: Path):
    (folder / "sar" / "b.tif").unlink()
    (folder / "lbl" / "a.tif").unlink()
    (folder / "sar" / "._c.tif").write_bytes(b"macOS")
    tiles = Tiles(described(folder), "all")
    assert tiles.keys == ["c"]
    assert tiles.skipped == [("a", "no label file"), ("b", "no sar file")]


def test_nothing_complete_is_refused(folder: Path):
    for key in KEYS:
        (folder / "sar" / f"{key}.tif").rename(folder / "sar" / f"{key}{key}.tif")
    with pytest.raises(InputError, match="no complete pair in .*among 6; the first, a: no sar file; check the folder"):
        Tiles(described(folder), "all")


def test_a_split_without_files_names_those_that_have_some(folder: Path):
    splits = {"all": None, "some": "some.txt", "test": ["d", "e"]}
    with pytest.raises(
        InputError,
        match=r"split test: no complete pair .* there are files of all \(3\), some \(2\): give one of these splits",
    ):
        Tiles(described(folder, splits=splits), "test")


def test_sizes_that_differ_are_refused(folder: Path):
    write_tiff(folder / "sar" / "a.tif", numbers(1, 6, 7))
    with pytest.raises(InputError, match="a: sizes in pixels differ: optical 6 x 8, sar 6 x 7, label 6 x 8"):
        Tiles(described(folder), "all")[0]


def test_16_bit_files_where_8_bit_are_expected_are_refused(folder: Path):
    wide = write_tiff(folder / "opt" / "a.tif", numbers(4, 6, 8, dtype=np.uint16, high=4000))
    with pytest.raises(InputError, match="a.tif holds uint16, expected is uint8; convert the files, or set `dtype`"):
        Tiles(described(folder), "all")[0]
    source = record()["optical"] | {"dtype": "uint16"}
    assert np.array_equal(Tiles(described(folder, optical=source), "all")[0].images["optical"], wide[[2, 0]])


def test_labels_outside_the_map_are_refused(folder: Path):
    write_tiff(folder / "lbl" / "a.tif", np.array([[[0, 10, 37, 20, 38, 38, 0, 0]] * 6], dtype=np.uint8))
    with pytest.raises(InputError, match=r"a.tif holds 37, 38, which are no class; known values are 0, 10, 20: mend"):
        Tiles(described(folder), "all")[0]


def test_an_image_in_the_place_of_labels_is_refused(folder: Path):
    with pytest.raises(InputError, match="has 4 bands of uint8; a label map has one band of small integers"):
        Tiles(described(folder, label={"files": "opt"}), "all")[0]


def test_a_missing_band_and_a_damaged_file_are_refused(folder: Path):
    with pytest.raises(InputError, match=r"has 1 bands, asked for are \[2\]"):
        Tiles(described(folder, sar={"files": "sar", "bands": [2]}), "all")[0]
    (folder / "opt" / "a.tif").write_bytes(b"II*\0 no more")
    with pytest.raises(InputError, match="a.tif cannot be read: .*; fetch it again, or take the pair out of the list"):
        Tiles(described(folder), "all")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splitz": {}}, "unknown key 'splitz'; did you mean 'splits'"),
        ({"optical": {"files": "opt"}}, "optical: 'bands' is missing"),
        ({"optical": {"files": "opt", "bands": [0]}}, "optical: bands is 0; give a whole number from 1"),
        ({"sar": {"files": "sar", "bands": [1], "mean": [1, 2]}}, "sar: mean has 2 numbers for 1 bands"),
        ({"sar": {"bands": [1]}}, "three: files of optical, label only"),
        ({"label": {"files": "lbl", "values": {0: 2}}}, "label.values leads to class 2; there are 0 to 1"),
        ({"classes": {"dry": [1, 2]}}, "colour of class dry is \\[1, 2\\]; give red, green and blue"),
        ({"splits": {}}, "no splits"),
        ({"classes": 3}, "pairs.yaml: "),
        ({"optical": 3}, "optical holds keys and values, got 3"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder: Path, change: dict, message: str):
    with pytest.raises(InputError, match=message):
        described(folder, **change)


def test_an_unknown_split_or_folder_is_refused(folder: Path):
    with pytest.raises(InputError, match="three has no split 'test'; it has all, some"):
        Tiles(described(folder), "test")
    with pytest.raises(InputError, match="nowhere/opt is not a folder; files are looked for there"):
        Tiles(described(folder, root="nowhere"), "all")
    with pytest.raises(InputError, match="this list of pairs cannot be read"):
        Tiles(described(folder, splits={"all": "no.txt"}), "all")


def test_missing_pixels_standardise_to_zero(folder: Path):
    decibels = np.array([[[-20.0, -10.0, np.nan, -9999.0]]], dtype=np.float32)
    for role, pixels in (("opt", numbers(4, 1, 4)), ("sar", decibels), ("lbl", numbers(1, 1, 4, high=1))):
        write_tiff(folder / role / "a.tif", pixels, nodata=-9999.0 if role == "sar" else None)
    source = {"files": "sar", "bands": [1], "dtype": "float32", "mean": [-10.0], "std": [5.0]}
    tiles = Tiles(described(folder, sar=source), "all")
    assert torch.isnan(tiles[0].images["sar"]).tolist() == [[[False, False, True, True]]]
    assert tiles.described.images["sar"].standardise(tiles[0].images["sar"]).tolist() == [[[-2.0, 0.0, 0.0, 0.0]]]
    with pytest.raises(InputError, match="mean and std of the bands are not given"):
        tiles.described.images["optical"].standardise(tiles[0].images["optical"])


def test_a_survey_measures_all_pixels_and_names_what_cannot_be_used(folder: Path):
    write_tiff(folder / "lbl" / "c.tif", np.zeros((1, 6, 8), dtype=np.uint8))
    (folder / "opt" / "b.tif").write_bytes(b"")
    pairs = described(folder)
    seen = survey(Tiles(pairs, "all"))
    labels = stored(folder / "lbl" / "a.tif")
    assert seen.tiles == 2
    assert seen.pixels.tolist() == [(labels == 10).sum(), (labels == 20).sum()]
    assert seen.ignored == (labels == 0).sum() + 48
    assert seen.all_ignored == ("c",)
    assert [skip.file for skip in seen.skipped] == ["b"]
    pixels = np.concatenate(
        [stored(folder / "opt" / f"{key}.tif")[[2, 0]].reshape(2, -1) for key in ("a", "c")], axis=1
    )
    measured = with_statistics(pairs, [seen]).images["optical"]
    assert measured.mean == pytest.approx(pixels.mean(axis=1))
    assert measured.std == pytest.approx(pixels.std(axis=1))
