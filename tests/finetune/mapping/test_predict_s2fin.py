"""A trained S2Fin maps scenes by its files alone, and says what the process that trained it says."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.io
import yaml
from rasterio.transform import from_origin

from finetune.mapping.command import main
from tests.helpers import warm
from tests.helpers.rasters import write_tiff
from tests.helpers.runs import ROOT, TIMEOUT, environment

HEIGHT, WIDTH, PATCH = 46, 61, 5
EDGE = PATCH // 2


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HSI of 9 bands, SAR intensities of 2 and labels of classes 1, 2, 4; some numbers are missing."""
    rng = np.random.default_rng(0)
    truth = np.array([1, 2, 4])[np.kron(rng.integers(0, 3, (6, 8)), np.ones((8, 8), dtype=int))[:HEIGHT, :WIDTH]]
    hsi = (40 * truth + 15 * rng.normal(size=(9, HEIGHT, WIDTH)) + 10 * np.arange(9)[:, None, None]).astype(np.float32)
    sar = (truth * rng.gamma(4, 1, (2, HEIGHT, WIDTH))).astype(np.float32)
    hsi[3, 10:13, 20] = -999
    sar[:, 30, 40:44] = np.nan
    return hsi, sar, np.where(rng.random((HEIGHT, WIDTH)) < 0.3, truth, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a seed, and that of its scene."""
    folder = tmp_path_factory.mktemp("s2fin")
    hsi, sar, labels = scene()
    write_tiff(folder / "hsi.tif", hsi, nodata=-999)
    write_tiff(folder / "sar.tif", sar)
    write_tiff(folder / "gt.tif", labels[None])
    record = {
        "log_active": True,
        "classes": ["water", "grass", "roof", "trees"],
        "layouts": [{"passive": "hsi.tif", "active": "sar.tif", "labels": "gt.tif"}],
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(record))
    settings = {
        "run.dir": folder / "run", "data.set": folder / "mine.yaml", "data.path": folder, "data.components": 4,
        "data.protocol.kind": "random", "model.width": 16, "model.patch": PATCH, "epochs": 6, "optim.batch": 16,
        "references": "false",
    }  # fmt: skip
    command = [str(ROOT / "finetune/classify.py")]
    command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    ended = warm.run(command, environment(), TIMEOUT)
    assert ended.returncode == 0, ended.stdout
    return folder / "run" / "seed_0", folder


def mapped(run: Path, out: Path, images: dict[str, str], *more: str) -> np.ndarray:
    given = [text for name, file in images.items() for text in ("--image", f"{name}={file}")]
    main(["--checkpoint", str(run), *given, "--out", str(out), "--device", "cpu", *more])
    with rasterio.open(out) as file:
        return file.read(1)


def files(folder: Path) -> dict[str, str]:
    return {"passive": str(folder / "hsi.tif"), "active": str(folder / "sar.tif")}


@pytest.fixture(scope="module")
def drawn(trained: tuple[Path, Path]) -> np.ndarray:
    """What the process that trained the network says of its scene."""
    (picture,) = (trained[0] / "pictures").glob("*.tif")
    with rasterio.open(picture) as file:
        return file.read(1)


@pytest.mark.parametrize("window", [16, 33, 512])
def test_windows_give_the_map_of_the_training_process(
    trained: tuple[Path, Path], drawn: np.ndarray, tmp_path: Path, window: int
) -> None:
    run, folder = trained
    found = mapped(run, tmp_path / "map.tif", files(folder), "--window", str(window))
    np.testing.assert_array_equal(found, drawn)
    hsi, sar, _ = scene()
    missing = (hsi == -999).any(axis=0) | np.isnan(sar).any(axis=0)
    np.testing.assert_array_equal(found == 255, missing)
    assert len(np.unique(found[~missing])) == 3


def test_the_map_is_the_file_that_every_task_writes(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, folder = trained
    mapped(run, tmp_path / "map.tif", files(folder), "--probabilities", str(tmp_path / "shares.tif"))
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(folder / "hsi.tif") as image:
        assert (file.crs, file.transform, file.nodata) == (image.crs, image.transform, 255)
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags(1) == {"CLASS_0": "water", "CLASS_1": "grass", "CLASS_2": "trees"}  # class 3 never occurs
        classes = file.read(1)
    with rasterio.open(tmp_path / "shares.tif") as file:
        shares = file.read()
    known = classes != 255
    assert (
        np.array_equal(shares.argmax(axis=0)[known], classes[known])
        or (np.sort(shares, axis=0)[-1][known] == shares[classes.clip(0, 2), *np.indices(classes.shape)][known]).all()
    )


def test_a_scene_that_it_never_saw_is_mapped_with_the_statistics_of_training(
    trained: tuple[Path, Path], drawn: np.ndarray, tmp_path: Path
) -> None:
    """A part of the scene, whose own statistics are others: all pixels but those at its new edges are the same."""
    run, _ = trained
    hsi, sar, _ = scene()
    part = np.s_[:, 5:40, 8:50]
    place = {"transform": from_origin(400_080, 4_999_950, 10, 10)}
    write_tiff(tmp_path / "hsi.tif", hsi[part], nodata=-999, **place)
    write_tiff(tmp_path / "sar.tif", sar[part], **place)
    found = mapped(run, tmp_path / "map.tif", files(tmp_path), "--window", "20")
    inner = np.s_[EDGE:-EDGE, EDGE:-EDGE]
    np.testing.assert_array_equal(found[inner], drawn[part[1:]][inner])


def test_arrays_of_a_matlab_file_are_images_too(trained: tuple[Path, Path], drawn: np.ndarray, tmp_path: Path) -> None:
    run, _ = trained
    hsi, sar, _ = scene()
    hsi[hsi == -999] = np.nan
    arrays = {"HSI": np.moveaxis(hsi, 0, -1), "SAR": np.moveaxis(sar, 0, -1)}
    scipy.io.savemat(tmp_path / "both.mat", arrays)
    images = {"passive": f"{tmp_path}/both.mat:HSI", "active": f"{tmp_path}/both.mat:SAR"}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        np.testing.assert_array_equal(mapped(run, tmp_path / "map.tif", images), drawn)


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ({"passive": "hsi.tif"}, (), "takes passive and active; give --image active=FILE"),
        ({"passive": "hsi.tif", "active": "hsi.tif"}, (), "hsi.tif has 9 bands, the active images of training had 2"),
        ({"passive": "hsi.tif", "active": "sar.tif", "sar": "sar.tif"}, (), "takes passive and active alone; omit"),
        ({"passive": "hsi.tif", "active": "sar.tif"}, ("--overlap", "8"), "windows need none; leave --overlap out"),
    ],
)
def test_wrong_images_are_one_line(
    trained: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    images: dict,
    more: tuple,
    message: str,
) -> None:
    run, folder = trained
    with pytest.raises(SystemExit, match="2"):
        mapped(run, tmp_path / "map.tif", {name: str(folder / file) for name, file in images.items()}, *more)
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_folder_of_seeds_says_which_one_to_take(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = trained
    with pytest.raises(SystemExit, match="2"):
        mapped(run.parent, tmp_path / "map.tif", files(folder))
    assert f"choose one of its seeds, such as {run}" in capsys.readouterr().err
