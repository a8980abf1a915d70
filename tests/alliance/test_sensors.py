"""Sensors: shipped files, matching by name, physical units, standardisation, groups."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st

from alliance.errors import InputError
from alliance.sensors import Band, Sensor, read_sensor
from alliance.sensors.plausible import drift, look
from datasets.synthetic.landscapes import WAVELENGTHS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "alliance" / "sensors").glob("*.yaml"))
MEASURED = {  # real files of the development data, and the sensor that reads them by band name
    "sentinel2-l1c": "oscd/pisa_t1.tif",
    "sentinel2-l1c-baseline4": "terramesh_tiles/S2L1C/282D_485L_3_3.tif",
    "sentinel2-l2a-baseline4": "terramesh_tiles/S2L2A/282D_485L_3_3.tif",
    "sentinel1-grd-db": "terramesh_tiles/S1RTC/282D_485L_3_3.tif",
    "gf3-quadpol-amplitude": "sar_gf3/gf3_2.tif",
    "rgb-uint8": "terramesh_tiles/S2RGB/282D_485L_3_3.tif",
    "elevation": "terramesh_tiles/DEM/282D_485L_3_3.tif",
}


def shipped(name: str) -> Sensor:
    return read_sensor(ROOT / "alliance" / "sensors" / f"{name}.yaml")


def cube(wavelengths: list[float]) -> Sensor:
    return Sensor(name="cube", bands=tuple(Band(name=f"{index}", wavelength=w) for index, w in enumerate(wavelengths)))


@pytest.fixture
def pair() -> Sensor:
    """Two bands whose numbers can be followed by hand."""
    bands = (
        Band(name="B02", aliases=("blue",), wavelength=490.0, scale=0.5, offset=-1.0, mean=2.0, std=4.0),
        Band(name="VV", modality="sar-vv", unit="dB", scale=2.0, mean=-10.0, std=0.5, spread=(1.0, 0.5)),
    )
    return Sensor(name="pair", bands=bands, gsd_m=10.0, nodata=0.0, groups=(("VV",), ("B02",)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sensor_loads_and_groups_hold_each_band_once(path: Path) -> None:
    sensor = read_sensor(path)
    assert sensor.name == path.stem
    assert sensor.description
    assert sorted(place for group in sensor.group_indices for place in group) == list(range(len(sensor.bands)))
    assert all((band.wavelength is not None) == (band.modality == "optical") for band in sensor.bands)
    assert not sensor.has_statistics  # these come from the shards


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("name", "file"), MEASURED.items(), ids=MEASURED)
def test_a_real_image_matches_its_sensor_by_name(name: str, file: str, shared_data: Path) -> None:
    sensor = shipped(name)
    with rasterio.open(shared_data / file) as image:
        stored = torch.from_numpy(image.read().astype(np.float32))
        arranged = sensor.arrange(stored, image.descriptions)
    physical = sensor.to_physical(arranged)
    low, high = {"dB": (-60, 30), "m": (-500, 9000), "digital number": (1, 65535)}.get(sensor.bands[0].unit, (-0.2, 2))
    assert low < physical[physical.isfinite()].quantile(0.5) < high


def test_the_offset_of_baseline_4_is_a_thousand_stored_numbers() -> None:
    for product in ("l1c", "l2a"):
        before, after = shipped(f"sentinel2-{product}"), shipped(f"sentinel2-{product}-baseline4")
        stored = torch.full((len(before.bands), 1, 1), 2500)
        torch.testing.assert_close(after.to_physical(stored + 1000), before.to_physical(stored))
        assert after.band_names == before.band_names


@pytest.mark.parametrize(("alias", "band"), [("red", "B04"), ("R", "B04"), ("b_4", "B04")])
def test_usual_names_of_a_band_are_known(alias: str, band: str) -> None:
    for name in ("sentinel2-l1c", "sentinel2-l2a", "synthetic-optical"):
        assert shipped(name).select([alias]).band_names == (band,)


@pytest.mark.parametrize("form", ["Band {}", "Band_{}", "B{}"])
def test_numbered_channels_never_pass_for_sentinel_2(form: str) -> None:
    """`Band 9` may be the ninth channel (B8A) or B09: a stack with numbers alone is refused."""
    with pytest.raises(InputError, match="lack .*B8A"):
        shipped("sentinel2-l2a").match([form.format(number) for number in range(1, 13)])


@given(st.permutations(range(13)), st.sampled_from([str, str.lower, str.upper, lambda name: name.replace("B0", "B_")]))
def test_names_match_whatever_their_order_and_spelling(order: list[int], spell) -> None:
    sensor = shipped("sentinel2-l1c")
    names = [spell(sensor.band_names[place]) for place in order]
    image = torch.tensor(order, dtype=torch.float32)[:, None, None]
    assert sensor.arrange(image, names).flatten().tolist() == list(range(13))


def test_surplus_names_are_allowed_and_skipped(pair: Sensor) -> None:
    assert pair.match(["QA60", "vv", "Blue"]) == [2, 1]


def test_a_missing_band_is_named_with_the_mend() -> None:
    names = [name for name in shipped("sentinel2-l1c").band_names if name not in ("B05", "B10")]
    with pytest.raises(InputError, match=r"lack B05, B10 of sensor sentinel2-l1c; .*sensor\.select"):
        shipped("sentinel2-l1c").match(names)


def test_an_ambiguous_name_is_refused(pair: Sensor) -> None:
    with pytest.raises(InputError, match="B02 of sensor pair stands twice"):
        pair.match(["B02", "blue", "VV"])
    with pytest.raises(InputError, match="names and aliases must differ, repeated: red"):
        Sensor(name="two-reds", bands=(Band(name="a", aliases=("red",)), Band(name="b", aliases=("Red",))))


def test_decimals_of_a_wavelength_name_count() -> None:
    sensor = cube([402.0, 4020.0])
    names = ["40.2 nm", "402 nm"]
    renamed = Sensor(name="cube", bands=tuple(Band(name=name) for name in names))
    assert renamed.match(names[::-1]) == [1, 0]
    assert sensor.match(["1", "0"]) == [1, 0]


def test_stored_numbers_become_physical_ones_by_hand(pair: Sensor) -> None:
    stored = torch.tensor([[[4.0, 0.0]], [[-3.0, math.nan]]])
    physical = pair.to_physical(stored)
    torch.testing.assert_close(physical, torch.tensor([[[1.0, math.nan]], [[-6.0, math.nan]]]), equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.float32])
def test_nodata_is_found_in_every_stored_type_and_never_wraps(dtype: torch.dtype) -> None:
    sensor = Sensor(name="height", bands=(Band(name="z"),), nodata=-9999.0)
    stored = torch.tensor([[[1, 241]]]).to(dtype)  # 241 is -9999 modulo 256
    assert sensor.to_physical(stored).tolist() == [[[1.0, 241.0]]]
    if dtype.is_signed:
        assert sensor.to_physical(torch.tensor([[[-9999]]], dtype=dtype)).isnan().all()


def test_standardising_gives_zero_mean_and_unit_deviation() -> None:
    image = torch.randn(4, 2, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3
    mean, std = image.mean((0, 2, 3)).tolist(), image.std((0, 2, 3)).tolist()
    sensor = Sensor(name="s", bands=(Band(name="a"), Band(name="b"))).with_statistics(mean, std)
    value, valid = sensor.standardise(image)
    torch.testing.assert_close(value.mean((0, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(value.std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(sensor.restore(value), image, atol=1e-5, rtol=0)
    assert valid.all()


def test_standardising_clamps_and_zeroes_missing_pixels(pair: Sensor) -> None:
    image = torch.tensor([[[[2.0, 1e6, math.nan, 6.0]], [[-10.0, -10.5, -9.0, -math.inf]]]])
    value, valid = pair.standardise(image)
    assert value.tolist() == [[[[0.0, 5.0, 0.0, 0.0]], [[0.0, -1.0, 0.0, 0.0]]]]
    assert valid.tolist() == [[[[True, True, False, False]]]]


def test_a_sensor_without_statistics_refuses_to_standardise() -> None:
    with pytest.raises(InputError, match="no mean and std; take the sensor from a shards index"):
        shipped("rgb-uint8").standardise(torch.zeros(1, 3, 8, 8))


def test_a_wrong_channel_count_is_refused(pair: Sensor) -> None:
    for call in (pair.to_physical, pair.standardise):
        with pytest.raises(InputError, match=r"\(1, 3, 8, 8\) does not fit sensor pair, which has 2 bands"):
            call(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="2 channels but 3 band names"):
        pair.arrange(torch.zeros(2, 8, 8), ["B02", "VV", "VH"])


def test_selected_bands_keep_their_numbers_and_groups(pair: Sensor) -> None:
    vv = pair.select(["vv"])
    assert vv.bands == (pair.bands[1],)
    assert vv.groups == (("VV",),)
    assert vv.is_sar and not pair.is_sar
    assert pair.select(["VV", "blue"]).group_indices == ((0,), (1,))
    with pytest.raises(InputError, match="has no band VH; it has B02, VV"):
        pair.select(["VH"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_sensor_survives_the_way_through_json(path: Path) -> None:
    sensor = read_sensor(path)
    sensor = sensor.with_statistics([0.25] * len(sensor.bands), [0.5] * len(sensor.bands))
    assert Sensor.from_dict(json.loads(json.dumps(sensor.to_dict()))) == sensor


def test_every_field_survives_the_way_through_json(pair: Sensor) -> None:
    assert Sensor.from_dict(json.loads(json.dumps(pair.to_dict()))) == pair


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(InputError, match=r"f\.yaml: unknown key 'gsd'; known keys: .*gsd_m"):
        Sensor.from_dict({"name": "s", "gsd": 10, "bands": [{"name": "a"}]}, source="f.yaml")
    with pytest.raises(InputError, match="unknown band key 'wave_length'; known: .*wavelength"):
        Sensor.from_dict({"name": "s", "bands": [{"name": "a", "wave_length": 490}]})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"bands": []}, "sensor s has no bands"),
        ({"bands": [{"name": "a", "modality": "radar"}]}, "band a: modality 'radar' is not one of optical"),
        ({"bands": [{"name": "a", "std": 0.0}]}, "band a: std is 0.0; give a number from 1e-30 to"),
        ({"bands": [{"name": "a"}, {"name": "b"}], "groups": [["a"]]}, "groups must hold each band once"),
    ],
)
def test_a_sensor_that_makes_no_sense_is_refused(record: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sensor.from_dict({"name": "s"} | record)


@pytest.mark.parametrize(
    ("band", "message"),
    [
        ({"wavelength": 0.49}, "give nanometres: 490"),
        ({"wavelength": 4.9e-7}, "give nanometres: 490"),
        ({"wavelength": 49000}, "give nanometres: 4900"),
        ({"wavelength": -490}, "wavelength is -490; give a number from 200 to 20000: give nanometres"),
        ({"wavelength": math.nan}, "wavelength is nan; give a number from 200 to 20000$"),
        ({"wavelength": math.inf}, "wavelength is inf; give a number from 200"),
        ({"bandwidth": 0.065}, "give nanometres: 65"),
        ({"scale": 0}, "scale is 0; give a number from 1e-30"),
        ({"scale": -1}, "scale is -1; give a number from 1e-30"),
        ({"scale": 1e300}, "scale is 1e\\+300; give a number"),
        ({"scale": "small"}, "scale is 'small'; give a number"),
        ({"scale": math.inf}, "scale is inf; give a number"),
        ({"offset": math.nan}, "offset is nan; give a number"),
        ({"offset": None}, "offset is None; give a number"),
        ({"mean": math.nan}, "mean is nan; give a number"),
        ({"std": math.inf}, "std is inf; give a number"),
        ({"std": -1}, "std is -1; give a number from 1e-30"),
        ({"std": True}, "std is True; give a number"),
        ({"valid": [1, 0]}, "valid must rise"),
        ({"valid": [[], 1.5]}, r"valid is \(\); give a number"),
        ({"valid": [{"low": 0}, 1.5]}, "valid is .*low.*; give a number"),
        ({"wavelength": [560]}, r"wavelength is .560.*; give a number"),
        ({"typical": 3}, "typical must be two numbers"),
        ({"aliases": "red"}, "aliases must be a list of texts"),
        ({"name": False}, "put it into quotation marks"),
        ({"unit": 7}, "unit must be a text"),
        ({"spread": [1, math.nan]}, "spread is nan; give a number from 0"),
    ],
)
def test_numbers_of_a_band_are_checked_wherever_it_comes_from(band: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Band(**({"name": "a"} | band))
    with pytest.raises(InputError, match=message):
        Sensor.from_dict({"name": "s", "bands": [{"name": "a"} | band]}, source="index.json")


@pytest.mark.parametrize(
    ("sensor", "message"),
    [
        ({"nodata": math.inf}, "nodata is inf; give a number that is finite"),
        ({"nodata": "none"}, "nodata is 'none'; give a number"),
        ({"gsd_m": 0}, "gsd_m is 0; give a number above 0"),
        ({"clamp": -5}, "clamp is -5; give a number above 0"),
        ({"dtypes": ["uint12"]}, "dtypes holds 'uint12'"),
        ({"product": "("}, "no regular expression"),
        ({"name": "a/b"}, "it names files"),
        ({"bands": "abc"}, "bands is a list"),
        ({"bands": [{"wavelength": 490}]}, "the name of band 1 is missing"),
        ({"groups": ["a"]}, "groups must be a list of texts"),
    ],
)
def test_what_a_sensor_says_of_itself_is_checked(sensor: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sensor.from_dict({"name": "s", "bands": [{"name": "a"}]} | sensor)


def test_yaml_writes_small_numbers_as_texts(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nscale: 1e-4\nbands: [{name: x}]\n")
    assert read_sensor(tmp_path / "a.yaml").bands[0].scale == 1e-4


@pytest.mark.parametrize(
    ("text", "key"), [("scale: 1\nscale: 2\nbands: [{name: x}]", "scale"), ("bands: [{name: x, name: y}]", "name")]
)
def test_a_key_stands_once(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "a.yaml").write_text(f"name: a\n{text}\n")
    with pytest.raises(InputError, match=f"'{key}' stands twice"):
        read_sensor(tmp_path / "a.yaml")


def test_a_file_that_extends_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b\nname: a\n")
    (tmp_path / "b.yaml").write_text("extends: a\nname: b\n")
    with pytest.raises(InputError, match="extends"):
        read_sensor(tmp_path / "a.yaml")


def test_tables_are_made_once_per_device_and_do_not_travel(pair: Sensor) -> None:
    image = torch.zeros(1, 2, 4, 4)
    pair.standardise(image)
    made: list[torch.device] = []

    def count(sensor: Sensor, device: torch.device) -> int:
        made.append(device)
        return len(sensor.bands)

    assert [pair.compiled(count, image.device) for _ in range(3)] == [2, 2, 2]
    assert len(made) == 1
    copied = copy.deepcopy(pair)
    assert copied == pair and copied.compiled(count, image.device) == 2
    assert len(made) == 2


@pytest.mark.parametrize("dtype", ["uint8", ">i2", ">f4", "float64", "uint16"])
def test_arrays_are_taken_as_they_are(pair: Sensor, dtype: str) -> None:
    stored = np.arange(1, 9).reshape(2, 2, 2).astype(dtype)
    expected = pair.to_physical(torch.arange(1, 9).reshape(2, 2, 2))
    torch.testing.assert_close(pair.to_physical(stored), expected)
    torch.testing.assert_close(pair.to_physical(stored[:, ::-1].copy()[:, ::-1]), expected)
    torch.testing.assert_close(
        pair.arrange(stored[::-1], ["VV", "blue"]).double(), torch.from_numpy(stored.astype("f8"))
    )


@pytest.mark.parametrize("image", [np.zeros((2, 4, 4), complex), np.array([["a"]]), [[1.0]], None])
def test_what_is_no_image_is_refused_in_words(pair: Sensor, image: object) -> None:
    with pytest.raises(InputError, match="give a tensor or a NumPy array of real numbers"):
        pair.to_physical(image)  # pyright: ignore[reportArgumentType]


def test_a_file_extends_another_through_several_steps(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nscale: 2.0\nbands: [{name: x}]\n")
    (tmp_path / "b.yaml").write_text("extends: a\nname: b\nnodata: 7\n")
    (tmp_path / "c.yaml").write_text("extends: b\nname: c\nscale: 3.0\n")
    sensor = read_sensor(tmp_path / "c.yaml")
    assert (sensor.name, sensor.nodata, sensor.bands[0].scale) == ("c", 7, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [("extends: d\n", "there is no file .*d.yaml"), ("[", "not valid"), ("7", "c.yaml holds int, not keys")],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_sensor(tmp_path / "c.yaml")


@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (3, 1), (16, 1), (17, 2), (103, 7), (369, 12), (426, 12)])
def test_automatic_groups_follow_the_channel_count(channels: int, groups: int) -> None:
    assert len(cube([400.0 + index for index in range(channels)]).group_indices) == groups


@given(st.lists(st.floats(400, 2500), min_size=1, max_size=200, unique=True))
def test_automatic_groups_are_contiguous_by_wavelength_and_hold_each_band_once(wavelengths: list[float]) -> None:
    groups = cube(wavelengths).group_indices
    along = [wavelengths[place] for group in groups for place in group]
    assert along == sorted(wavelengths)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1


def test_the_synthetic_cubes_have_the_wavelengths_of_their_sensor() -> None:
    assert [band.wavelength for band in shipped("synthetic-hsi").bands] == list(WAVELENGTHS)


@pytest.mark.parametrize("std", [1e7, 1e30])
def test_statistics_that_no_image_has_are_told(std: float) -> None:
    sensor = Sensor(name="own", bands=(Band(name="a", mean=0.0, std=std), Band(name="b", mean=0.0, std=std)))
    image = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 32, 32)))
    assert "they are not of such images" in drift(sensor, look(sensor, image))[0]
    wider = sensor.with_statistics([0.0, 0.0], [2.0, 2.0])
    assert not drift(wider, look(wider, image))
