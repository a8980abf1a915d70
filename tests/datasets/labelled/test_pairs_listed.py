"""Splits that stand in the description itself, and the shipped description of real tiles that has them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from alliance.errors import InputError
from datasets.labelled.description import LabelledSet
from datasets.labelled.parse import find_set, write_set
from datasets.labelled.tiles import Tiles
from datasets.releases.command import main as prepare
from datasets.synthetic.pair_trees import write_ddhr, write_plain

TERRAMESH = Path(__file__).resolve().parents[3] / "configs" / "labelled" / "terramesh-tiles.yaml"
KEYS = ("1", "a", "b/c")  # the first is a number, the last lies in a folder


def described(folder: Path, splits: object) -> LabelledSet:
    """Three pairs of 4 x 4 pixels; the number of a pair is its only optical value."""
    for number, key in enumerate(KEYS):
        for role in ("opt", "sar", "lbl"):
            write_plain(folder / role / f"{key}.tif", np.full((1, 4, 4), number, dtype=np.uint8))
    record = {"name": "listed", "classes": {name: [1, 2, 3] for name in "xyz"}, "splits": splits}
    record |= {"optical": {"files": "opt", "bands": [1]}, "sar": {"files": "sar/{key}.tif", "bands": [1]}}
    record |= {"label": {"files": "lbl"}}
    (folder / "pairs.yaml").write_text(yaml.safe_dump(record))
    return find_set(folder / "pairs.yaml")


SPLITS = {"train": ["b/c.tif", "1"], "test": ["a"], "all": None}


def test_a_list_in_the_description_sets_pairs_and_order(tmp_path: Path) -> None:
    pairs = described(tmp_path, SPLITS)
    train, test, everything = (Tiles(pairs, split) for split in SPLITS)
    assert (train.keys, test.keys, everything.keys) == (["b/c", "1"], ["a"], list(KEYS))
    assert [int(train[index].images["optical"].unique()) for index in range(2)] == [2, 0]


def test_a_list_is_written_back_and_reads_the_same(tmp_path: Path) -> None:
    pairs = described(tmp_path, SPLITS)
    write_set(pairs, tmp_path / "again.yaml")
    again = find_set(tmp_path / "again.yaml")
    assert again == pairs
    assert Tiles(again, "train").keys == ["b/c", "1"]
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["splits"] == SPLITS


def test_lines_of_three_paths_may_stand_in_the_description(tmp_path: Path) -> None:
    write_ddhr(tmp_path)
    lines = (tmp_path / "trainM_list.txt").read_text().splitlines()
    record = yaml.safe_load((TERRAMESH.parent / "ddhr-sk.yaml").read_text())
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(record | {"splits": {"train": lines[1:]}}))
    tiles = Tiles(find_set(tmp_path / "pairs.yaml"), "train")
    assert [files.label.name for files in tiles.files] == ["3.png", "5.png"]


def test_listed_pairs_without_files_are_skipped_and_named(tmp_path: Path) -> None:
    pairs = described(tmp_path, {"train": ["a", "z"], "none": ["z"], "empty": []})
    tiles = Tiles(pairs, "train")
    assert tiles.keys == ["a"] and tiles.skipped == [("z", "no optical and no sar and no label file")]
    for split in ("none", "empty"):
        with pytest.raises(InputError, match=f"listed, split {split}: no complete pair"):
            Tiles(pairs, split)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [1, "a"]}, "listed: split train lists 1, not a name; put it in quotes"),
        ({"train": ["a", None]}, "listed: split train lists None, not a name; put it in quotes"),
        ({"train": 3}, "listed: split train is 3; give a list file, names of pairs, or null for all"),
        ({"train": {"a": 1}}, "listed: split train is {'a': 1}; give a list file, names of pairs, or null for all"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path: Path, splits: object, message: str) -> None:
    """YAML reads 1 as a number, 1_3 as 13 and 007 as 7: which name was meant cannot be told."""
    with pytest.raises(InputError) as refused:
        described(tmp_path, splits)
    assert str(refused.value).endswith(message)


# The real tiles


@pytest.fixture(scope="module")
def terramesh(shared_data: Path) -> LabelledSet:
    return find_set(TERRAMESH, root=shared_data / "terramesh_tiles")


def test_the_real_tiles_are_two_and_one(terramesh: LabelledSet) -> None:
    train, test = (Tiles(terramesh, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1) and not train.skipped and not test.skipped
    assert not set(train.keys) & set(test.keys)
    files = {path.stem for path in (terramesh.root / "S2RGB").glob("*.tif")}
    assert files - {*train.keys, *test.keys} == {"609U_541L_3_0"}  # snow alone


def test_the_real_tiles_have_known_classes_and_finite_values(terramesh: LabelledSet) -> None:
    """Training tiles standardise to mean 0 and deviation 1: the statistics in the description are theirs."""
    train, test = ([tiles[n] for n in range(len(tiles))] for tiles in (Tiles(terramesh, s) for s in terramesh.splits))
    for pair in (*train, *test):
        assert pair.images["optical"].shape == (3, 224, 224) and pair.images["sar"].shape == (2, 224, 224)
        assert set(pair.label.unique().tolist()) <= {*range(len(terramesh.classes)), 255}
        assert (pair.label != 255).float().mean() > 0.5
        for source, image in (
            (terramesh.images["optical"], pair.images["optical"]),
            (terramesh.images["sar"], pair.images["sar"]),
        ):
            standardised = source.standardise(image)
            assert standardised.isfinite().all() and standardised.abs().max() < 12
    for source, role in ((terramesh.images["optical"], "optical"), (terramesh.images["sar"], "sar")):
        images = source.standardise(torch.stack([pair.images[role] for pair in train]))
        assert images.mean(dim=(0, 2, 3)).numpy() == pytest.approx(0, abs=0.01)
        assert images.std(dim=(0, 2, 3)).numpy() == pytest.approx(1, abs=0.01)
    found = torch.cat([pair.label.unique() for pair in train]).unique()
    assert len(found[found != 255]) > 2


def test_the_check_reads_the_real_tiles(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(["check", str(TERRAMESH), "--root", str(shared_data / "terramesh_tiles")])
    said = capsys.readouterr().out
    assert "train: 2 tiles" in said and "test: 1 tiles" in said and "skipped" not in said
