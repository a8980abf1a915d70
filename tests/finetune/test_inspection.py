"""What `launch/inspect.py` says of sets and networks: counts by hand, and nothing written but the picture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.imagery.images import ImageSource
from finetune.inspection import main
from finetune.model_files import image_input, write_model
from tests.helpers.rasters import write_tiff

SET = """
name: own
optical: {files: opt, bands: [1, 2, 3]}
sar: {files: sar, sensor: sentinel1-grd-db}
label: {files: label, values: {1: 0, 2: 1, 9: 255}}
classes: [water, land]
splits: {train: [a, b], test: [c]}
"""


def write_own(root: Path) -> Path:
    """Label maps of 10 x 10: of a 30 pixels of water and 70 of land, of b and c 100 of land and 100 without a class."""
    decibels = -np.random.default_rng(0).uniform(5, 20, (2, 10, 10)).astype("f4")
    label = {"a": np.full((1, 10, 10), 2, "u1"), "b": np.full((1, 10, 10), 2, "u1"), "c": np.full((1, 10, 10), 9, "u1")}
    label["a"][:, :3] = 1
    for name, values in label.items():
        write_tiff(root / "opt" / f"{name}.tif", np.full((3, 10, 10), 7, "u1"), nodata=0)
        write_tiff(root / "sar" / f"{name}.tif", decibels, names=("VV", "VH"))
        write_tiff(root / "label" / f"{name}.tif", values)
    (root / "own.yaml").write_text(SET)
    return root / "own.yaml"


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_told_with_its_images_and_the_pixels_of_each_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = write_own(tmp_path)
    before = files_of(tmp_path)
    main([str(described), "--out", str(tmp_path / "seen.png")])
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "optical: a size 3 bands x 10 x 10 px, uint8", "nodata 0", "EPSG:32633, pixel 10", "fits sentinel1-grd-db",
        "split train: 2 samples, 0 left out water 30 pixels, 15.00% land 170 pixels, 85.00% (no label) 0 pixels",
        "split test: 1 samples, 0 left out water 0 pixels, 0.00% land 0 pixels, 0.00% (no label) 100 pixels",
    ):  # fmt: skip
        assert part in said
    assert files_of(tmp_path) - before == {tmp_path / "seen.png"}


def test_what_cannot_be_used_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = write_own(tmp_path)
    write_tiff(tmp_path / "label" / "b.tif", np.full((1, 10, 10), 5, "u1"))
    main([str(described)])
    said = capsys.readouterr().out
    assert "split train: 2 samples, 1 left out" in said
    assert "left out  b: " in said and "70 pixels, 70.00%" in said


def test_a_scene_and_ready_patches_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((8, 9), np.uint8)
    labels[0], labels[1, :3] = 1, 2
    np.savez(tmp_path / "scene.npz", hsi=np.ones((8, 9, 20)), dsm=np.ones((8, 9)), gt=labels)
    (tmp_path / "scene.yaml").write_text(
        "classes: [grass, soil]\nlayouts:\n  - {passive: scene.npz:hsi, active: scene.npz:dsm, labels: scene.npz:gt}\n"
    )
    main([str(tmp_path / "scene.yaml")])
    said = " ".join(capsys.readouterr().out.split())
    assert "20 bands x 8 x 9 px, float64" in said
    assert "labels: 12 labelled pixels grass 9 pixels, 75.00% soil 3 pixels, 25.00%" in said
    where = np.arange(4)
    where, patch = np.arange(4), np.zeros((4, 7, 7), dtype=int)
    arrays = {
        "block": where // 2,
        "row": where,
        "col": where,
        "neighbour_index": patch,
        "label": np.array([1, 1, 2, 1]),
    }
    spectra, lidar = np.tile(np.array([1, 2], dtype=np.float32), (4, 1)), np.full((4, 1, 7, 7), np.nan)
    np.savez(tmp_path / "p.npz", spectra=spectra, lidar_patch=lidar, **arrays)
    (tmp_path / "patches.yaml").write_text("classes: [grass, soil]\npatches: p.npz\n")
    main([str(tmp_path / "patches.yaml")])
    said = " ".join(capsys.readouterr().out.split())
    assert "4 labelled pixels in 2 blocks spectra (4, 2) float32, 1 to 2, median 1.5, 0.0% missing" in said
    assert "no value, 100.0% missing grass 3 pixels, 75.00% soil 1 pixels, 25.00%" in said


def test_a_trained_network_is_told_by_its_folder_and_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ImageSource(bands=(3, 1), dtype="uint16", nodata=0, mean=(5, 6.5), std=(2, 3))
    record = {
        "task": "segment",
        "classes": {"water": [0, 0, 255], "land": [0, 255, 0]},
        "inputs": {"optical": image_input(source).to_record()},
    }
    write_model(tmp_path / "run" / "seed_1" / "model", record, {"w": torch.zeros(3, 5), "b": torch.zeros(2)})
    for given in ("seed_1", "seed_1/model"):
        main([str(tmp_path / "run" / given)])
        said = " ".join(capsys.readouterr().out.split())
        assert "a trained network of task segment, 17 weights classes water, land" in said
        assert "optical: dtype uint16, bands 3, 1, nodata 0" in said and "channel 2 mean 6.5 std 3" in said
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run")])
    assert f"choose one of its seeds, such as {tmp_path / 'run' / 'seed_1'}" in capsys.readouterr().err


def write_folders(root: Path) -> None:
    """Two classes of 3 and 2 images in each of two splits."""
    for split in ("train", "test"):
        for name, count in (("water", 3), ("land", 2)):
            for number in range(count):
                write_tiff(root / split / name / f"{number}.tif", np.full((3, 10, 10), number, "u1"), nodata=255)


def test_folders_of_classes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path / "set")
    (tmp_path / "set" / "train" / "water" / "broken.tif").write_bytes(b"no image")
    main([str(tmp_path / "set")])
    said = " ".join(capsys.readouterr().out.split())
    assert "split train: 6 images land 2 images, 33.33% water 4 images, 66.67%" in said
    assert "split test: 5 images land 2 images, 40.00% water 3 images, 60.00%" in said
    assert "3 bands x 10 x 10 px, uint8" in said


def test_settings_of_images_with_several_labels_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path / "set")
    table = ["file,label", "train/water/0.tif,a;b", "train/water/1.tif,a", "train/water/2.tif,", "test/land/7.tif,a"]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(table))
    settings = tmp_path / "multilabel.yaml"
    settings.write_text("data: {path: nowhere, labels: table}\noptim: {lr: 1e-3}\n")
    main([str(settings), "--root", str(tmp_path / "set")])
    said = " ".join(capsys.readouterr().out.split())
    assert "no split is given: 3 images, 1 with several labels a 2 images, 66.67% b 1 images, 33.33%" in said
    assert "left out test/land/7.tif: no image of this name" in said
    settings.write_text("data: {set: x}\nmethod: pad\n")
    with pytest.raises(SystemExit) as ended:
        main([str(settings)])
    assert ended.value.code == 2 and "give the description that its data.set names" in capsys.readouterr().err


def test_a_split_that_is_not_there_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = write_own(tmp_path)
    described.write_text(SET.replace("{train: [a, b], test: [c]}", "{absent: absent.txt, train: [a, b], gone: [x]}"))
    main([str(described)])
    said = " ".join(capsys.readouterr().out.split())
    assert "split absent: not there: " in said and "split gone: not there: " in said
    assert "split train: 2 samples, 0 left out water 30 pixels" in said
    described.write_text(SET.replace("{train: [a, b], test: [c]}", "{absent: absent.txt}"))
    with pytest.raises(SystemExit) as ended:
        main([str(described)])
    assert ended.value.code == 2 and "absent.txt" in capsys.readouterr().err


def test_masks_of_0_and_255_are_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = write_own(tmp_path)
    for name in "abc":
        mask = np.zeros((1, 10, 10), "u1")
        mask[:, :3] = 255
        write_tiff(tmp_path / "label" / f"{name}.tif", mask)
    described.write_text(SET.replace(", values: {1: 0, 2: 1, 9: 255}", "").replace("[water, land]", "[water]"))
    main([str(described)])
    assert "to be settled: own: label maps hold 0 and 255 alone" in capsys.readouterr().out
