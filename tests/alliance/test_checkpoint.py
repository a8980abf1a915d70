"""Exported encoders: the same features after loading, and a clear refusal of whatever does not fit."""

import dataclasses
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import alliance
from alliance import AllianceEncoder, Band, InputError, Sensor, load_encoder, save_encoder
from alliance.checkpoint import load_weights
from tests.helpers.models import ABLATIONS, FOUR_BANDS, natural_image, sensor_of, tiny_model

ROOT = Path(alliance.__file__).resolve().parents[1]
WEIGHTS, CONFIG, SENSORS = "model.safetensors", "config.json", "sensors.json"
OPTICAL = Sensor(
    name="optical",
    bands=(
        Band(name="B04", aliases=("red",), wavelength=665.0, bandwidth=31.0, mean=0.2, std=0.1, spread=(0.8, 0.4, 0.3)),
        Band(
            name="B08", aliases=("nir",), wavelength=833.0, bandwidth=106.0, mean=0.3, std=0.1, scale=1e-4, offset=-0.1
        ),
        Band(name="height", modality="elevation", unit="m", mean=0.1, std=0.1),
    ),
    gsd_m=10.0,
    nodata=0.0,
    groups=(("B04", "B08"), ("height",)),
    description="two bands and a terrain model",
)


@pytest.fixture
def encoder() -> AllianceEncoder:
    return tiny_model(sensors=(OPTICAL, FOUR_BANDS)).encoder.eval()


@pytest.fixture
def export(encoder: AllianceEncoder, tmp_path: Path) -> Path:
    return save_encoder(encoder, tmp_path / "encoder")


def reflectance(b: int = 2, h: int = 8, w: int = 12) -> torch.Tensor:
    return 0.2 + 0.1 * natural_image(b, 3, h, w)


def rewrite(export: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of an export in place."""
    weights = load_file(export / WEIGHTS)
    change(weights)
    save_file(weights, export / WEIGHTS)


@pytest.mark.parametrize(
    "name",
    [
        "default",
        "plain tokens",
        "jumbo tokens",
        "fixed tokenizer",
        "positions side by side",
        "no amplitude in the token",
    ],
)
def test_a_loaded_encoder_gives_the_same_features(name, tmp_path):
    encoder = tiny_model(ABLATIONS[name], (FOUR_BANDS, OPTICAL)).encoder.eval()
    loaded = load_encoder(save_encoder(encoder, tmp_path / "encoder"))
    assert not loaded.training
    assert loaded.config == encoder.config
    image = natural_image(2, 4, 8, 12)
    for one, two in zip(encoder(image, FOUR_BANDS), loaded(image, "four"), strict=True):
        assert torch.equal(one, two)


def test_the_sensors_travel_with_the_weights(encoder, export):
    assert load_encoder(export).sensors == {"optical": OPTICAL, "four": FOUR_BANDS}


def test_the_folder_its_file_and_the_run_are_the_same_checkpoint(encoder, export):
    expected = encoder(reflectance(), "optical").cls
    for path in (export, str(export), export / WEIGHTS, export.parent):
        assert torch.equal(load_encoder(path)(reflectance(), "optical").cls, expected)


def test_an_export_holds_float32_whatever_was_trained(encoder, tmp_path):
    export = save_encoder(encoder.bfloat16(), tmp_path / "encoder")
    assert {value.dtype for value in load_file(export / WEIGHTS).values()} == {torch.float32}
    for one, two in zip(
        encoder.float()(reflectance(), OPTICAL), load_encoder(export)(reflectance(), OPTICAL), strict=True
    ):
        assert torch.equal(one, two)


def test_gathered_weights_are_written_instead_of_the_encoders_own(encoder, tmp_path):
    gathered = {name: torch.zeros_like(value) for name, value in encoder.state_dict().items()}
    loaded = load_encoder(save_encoder(encoder, tmp_path / "encoder", weights=gathered))
    assert all((value == 0).all() for value in loaded.state_dict().values())


def test_an_export_is_replaced_whole(encoder, export):
    (export / "left-over.bin").write_text("of an older version")
    other = tiny_model(ABLATIONS["plain tokens"], (OPTICAL,)).encoder
    save_encoder(other, export)
    assert sorted(path.name for path in export.iterdir()) == [CONFIG, WEIGHTS, SENSORS]
    assert [path.name for path in export.parent.iterdir()] == ["encoder"]
    assert load_encoder(export).config.tokens == "plain"


def test_an_export_that_fails_leaves_the_older_one(encoder, export):
    with pytest.raises(AttributeError):
        save_encoder(encoder, export, weights={"norm.weight": None})
    assert load_encoder(export).config == encoder.config


# Inputs that do not fit


def test_a_wrong_number_of_channels_is_refused(encoder):
    with pytest.raises(InputError, match=r"\(2, 4, 8, 12\).*optical.*3 bands.*B04, B08, height"):
        encoder(natural_image(2, 4, 8, 12), "optical")


def test_an_unknown_sensor_is_refused_with_the_known_ones(encoder):
    with pytest.raises(InputError, match=r"optical, four.*sentinel.*statistics"):
        encoder(reflectance(), "sentinel")


def test_a_sensor_without_statistics_is_refused_unless_its_namesake_has_them(encoder):
    bare = dataclasses.replace(
        OPTICAL, bands=tuple(dataclasses.replace(band, mean=None, std=None) for band in OPTICAL.bands)
    )
    assert torch.equal(encoder(reflectance(), bare).cls, encoder(reflectance(), OPTICAL).cls)
    with pytest.raises(InputError, match=r"stranger.*mean and std"):
        encoder(reflectance(), dataclasses.replace(bare, name="stranger"))


def test_a_size_that_the_patch_does_not_divide_is_refused(encoder):
    for call in (encoder, encoder.forward_features, partial(encoder.forward_intermediates, indices=1)):
        with pytest.raises(InputError, match=r"10 x 12.*4"):
            call(reflectance(2, 10, 12), "optical")


def test_stored_numbers_instead_of_reflectance_are_refused_with_the_mend(encoder):
    with pytest.raises(InputError, match=r"reflectance.*to_physical"):
        encoder(reflectance() * 10_000, "optical")
    encoder(reflectance() * 1.5, "optical")  # a bright image is fine
    gaps = reflectance()
    gaps[:, :, :6] = torch.nan
    assert all(part.isfinite().all() for part in encoder(gaps, "optical"))


def test_images_of_every_kind_and_place_are_taken(encoder):
    image = reflectance()
    expected = encoder(image, "optical").cls
    for same in (
        image.double(),
        image.numpy(),
        image.numpy().astype(">f8"),
        image.numpy()[:, :, ::-1].copy()[:, :, ::-1],
    ):
        torch.testing.assert_close(encoder(same, "optical").cls, expected)
    torch.testing.assert_close(encoder(image[0], "optical").cls, expected[:1])
    torch.testing.assert_close(
        encoder.forward_features(image[0].numpy(), "optical"), encoder.forward_features(image[:1], "optical")
    )
    assert encoder.forward_intermediates(image[0], "optical", indices=1)[0].shape == (1, 48, 2, 3)
    counts = torch.ones(1, 4, 8, 8, dtype=torch.uint16)
    torch.testing.assert_close(encoder(counts, FOUR_BANDS).cls, encoder(counts.float(), FOUR_BANDS).cls)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(8, 12), "give .b, c, h, w., or .c, h, w. of one image"),
        (torch.zeros(0, 3, 8, 12), "give .b, c, h, w."),
        (torch.zeros(1, 8, 12, 3), "its channels stand last: image.movedim"),
        (torch.zeros(1, 3, 8, 12, dtype=torch.complex64), "dense tensor of real numbers"),
        (torch.zeros(1, 3, 8, 12, device="meta"), "on meta; give a dense tensor"),
        (np.array([["a"]]), "NumPy array of real numbers"),
        ([[1.0]], "is list; give a tensor"),
        ("image.tif", "is str; give a tensor"),
    ],
)
def test_what_is_no_image_is_refused_in_words(encoder, image, said):
    for call in (encoder, encoder.forward_features, partial(encoder.forward_intermediates, indices=1)):
        with pytest.raises(InputError, match=said):
            call(image, "optical")


def test_what_is_no_sensor_is_refused_in_words(encoder):
    with pytest.raises(InputError, match="sensor is dict; give an alliance.Sensor"):
        encoder(reflectance(), {"name": "optical"})


def test_numbers_of_another_unit_are_refused_with_the_mend(encoder):
    """However bright or dark, an image of the ground has the spread of one."""
    radar = Sensor(
        name="radar",
        bands=tuple(
            Band(name=name, modality=f"sar-{name}", unit="dB", mean=mean, std=3.0)
            for name, mean in (("vv", -11.0), ("vh", -18.0))
        ),
    )
    noise = natural_image(2, 2, 8, 12)
    decibels = torch.tensor([-11.0, -18.0])[:, None, None] + 3 * noise
    assert encoder(decibels, radar).cls.isfinite().all()
    assert encoder(decibels - 12, radar).cls.isfinite().all()  # open water
    power = 10 ** (decibels / 10)
    for wrong, cause in (
        (power, "linear power"),
        ((power.sqrt() * 600).round(), "amplitudes or counts"),
        (100 * decibels, "x 100"),
    ):
        with pytest.raises(InputError, match=rf"not dB as sensor radar measures it.*{cause}.*to_physical"):
            encoder(wrong, radar)
    for factor in (1e-4, 1e4):
        with pytest.raises(InputError, match=r"not reflectance as sensor optical.*to_physical"):
            encoder(reflectance().abs() * factor, "optical")


# Files that do not fit


@pytest.mark.parametrize("part", [None, WEIGHTS])
def test_a_missing_checkpoint_is_refused_with_what_was_looked_for(export, tmp_path, part):
    place = tmp_path / "nowhere"
    if part:
        place = export
        (export / part).unlink()
    with pytest.raises(InputError, match=rf"{place.name}.*{WEIGHTS}"):
        load_encoder(place)


def test_weights_that_do_not_fit_are_listed_in_a_table(export):
    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["norm.bias"]
        weights["head.weight"] = torch.zeros(5, 48)
        weights["blocks.0.attn.qkv.bias"] = torch.zeros(7)

    rewrite(export, change)
    with pytest.raises(InputError) as refusal:
        load_encoder(export)
    rows = [line.split() for line in str(refusal.value).splitlines()[1:]]
    assert sorted(row[:2] for row in rows) == [
        ["missing", "norm.bias"],
        ["reshaped", "blocks.0.attn.qkv.bias"],
        ["unexpected", "head.weight"],
    ]
    table = str(refusal.value)
    assert "(7,)" in table and "(144,)" in table and "(5, 48)" in table and "allow" in table
    for some in (["norm.bias"], ["norm.bias", "head.weight"]):
        with pytest.raises(InputError, match=r"reshaped +blocks.0.attn.qkv.bias"):
            load_encoder(export, allow=some)
    loaded = load_encoder(export, allow=["norm.bias", "head.weight", "blocks.0.attn.qkv.bias"])
    assert loaded.blocks[0].attn.qkv.bias.shape == (144,)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", [WEIGHTS, CONFIG, SENSORS])
def test_a_damaged_file_is_refused_by_name(export, file, damage):
    DAMAGES[damage](export / file)
    with pytest.raises(InputError, match=file):
        load_encoder(export)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (CONFIG, []),
        (CONFIG, {}),
        (CONFIG, {"format": 1}),
        (CONFIG, {"format": 99, "encoder": {}}),
        (CONFIG, {"format": 1, "encoder": {"embed_dim": "wide"}}),
        (CONFIG, {"format": 1, "encoder": {"embed_dims": 48}}),
        (SENSORS, {"name": "optical"}),
        (SENSORS, [{"name": "optical"}]),
        (SENSORS, [{"name": "optical", "bands": [{"wavelength": 600}]}]),
        (SENSORS, ["optical"]),
    ],
)
def test_a_file_with_other_content_is_refused_by_name(export, file, content):
    (export / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match=file):
        load_encoder(export)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_in_place_of_weights_executes_nothing(export, tmp_path, kind):
    sprung, content = tmp_path / "sprung", {"norm.weight": Trap(tmp_path / "sprung")}
    if kind == "pickle":
        (export / WEIGHTS).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, export / WEIGHTS)
    with pytest.raises(InputError, match=WEIGHTS):
        load_encoder(export)
    assert not sprung.exists()


OLD = "ignore:`torch.jit:DeprecationWarning"  # of older versions of timm with a newer torch
LOAD_ALONE = """
import sys
for name in ("deepspeed", "webdataset", "rasterio", "h5py", "scipy", "torchmetrics", "jsonargparse", "wandb", "matplotlib",
             "tqdm.auto", "datasets", "engine", "pretrain", "finetune", "launch"):
    sys.modules[name] = None
import torch
import alliance
folder, image, cls = sys.argv[1:]
assert torch.equal(alliance.load_encoder(folder)(torch.load(image, weights_only=True), "optical").cls,
                   torch.load(cls, weights_only=True))
"""


def test_an_encoder_loads_with_the_core_libraries_alone(encoder, export, tmp_path):
    torch.save(reflectance(), tmp_path / "image.pt")
    torch.save(encoder(reflectance(), "optical").cls.detach(), tmp_path / "cls.pt")
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        OLD,
        "-c",
        LOAD_ALONE,
        export,
        tmp_path / "image.pt",
        tmp_path / "cls.pt",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Feature maps


def test_intermediate_features_are_maps_of_each_block(encoder):
    image = reflectance(2, 8, 12)
    means = encoder.forward_intermediates(image, "optical", [0, -1])
    kept = encoder.forward_intermediates(image, "optical", [0, -1], groups="keep")
    assert [part.shape for part in means] == [(2, 48, 2, 3)] * 2
    assert [part.shape for part in kept] == [(2, 2, 48, 2, 3)] * 2
    for mean, both in zip(means, kept, strict=True):
        torch.testing.assert_close(mean, both.mean(1))
    tokens = encoder(image, "optical").tokens  # (b, g, n, d)
    torch.testing.assert_close(kept[-1].flatten(-2).mT, tokens)
    assert not torch.allclose(means[0], means[1])


def test_intermediate_features_come_in_the_order_asked(encoder):
    first, last = encoder.forward_intermediates(reflectance(), "optical", [0, 1])
    for indices in ([1, 0], [-1, -2], [1, 0, 1]):
        maps = encoder.forward_intermediates(reflectance(), "optical", indices)
        assert torch.equal(maps[0], last)
        assert torch.equal(maps[1], first)
    assert torch.equal(encoder.forward_intermediates(reflectance(), "optical", 1)[0], last)
    assert torch.equal(encoder.forward_intermediates(reflectance(), "optical", 2)[0], first)


@pytest.mark.parametrize("indices", [[], [2], [-3], 0, 3, -1])
def test_blocks_that_do_not_exist_are_refused(encoder, indices):
    with pytest.raises(InputError, match="2 blocks"):
        encoder.forward_intermediates(reflectance(), "optical", indices)


def test_frozen_features_do_not_depend_on_the_batch(encoder):
    whole = encoder(reflectance(3), "optical")
    alone = encoder(reflectance(3)[1:2], "optical")
    for one, two in zip(whole, alone, strict=True):
        torch.testing.assert_close(one[1:2], two, atol=1e-5, rtol=1e-5)


def test_a_sensor_never_seen_needs_only_its_statistics(encoder):
    assert encoder(natural_image(1, 20, 8, 8), sensor_of(20, name="new")).tokens.shape == (1, 2, 4, 48)


@torch.no_grad()
def test_kept_special_tokens_equal_recomputed_ones_and_follow_the_weights(tmp_path):
    model = tiny_model()
    encoder = load_encoder(save_encoder(model.encoder, tmp_path / "encoder"))
    first, again = encoder.special_tokens(), encoder.special_tokens()
    assert first.frequency is again.frequency  # computed once
    recomputed = encoder.special()
    assert torch.equal(first.cls, recomputed.cls)
    assert torch.equal(first.frequency, recomputed.frequency)
    encoder.load_state_dict({name: value + 0.1 for name, value in encoder.state_dict().items()})
    assert torch.equal(encoder.special_tokens().cls, encoder.special().cls)
    assert not torch.equal(encoder.special_tokens().frequency, first.frequency)
    assert encoder.bfloat16().special_tokens().cls.dtype == torch.bfloat16


def test_special_tokens_take_gradients_where_they_are_wanted(tmp_path):
    encoder = load_encoder(save_encoder(tiny_model().encoder, tmp_path / "encoder"))
    with torch.no_grad():
        encoder.special_tokens()
    encoder.special_tokens().cls.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.special.parameters())


@pytest.mark.parametrize(
    ("spoil", "row"),
    [
        (lambda weight: torch.full_like(weight, math.nan), "not-finite"),
        (lambda weight: weight.index_fill(0, torch.tensor([0]), math.inf), "not-finite"),
        (lambda weight: weight.int(), "not-floating-point"),
        (lambda weight: weight.bool(), "not-floating-point"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(spoil, row):
    module = torch.nn.Linear(3, 2)
    before = module.weight.detach().clone()
    weights = {"weight": spoil(torch.ones(2, 3)), "bias": torch.zeros(2)}
    with pytest.raises(InputError, match=rf"does not fit the model.*\n  {row} +weight"):
        load_weights(module, weights)
    load_weights(module, weights, allow=["weight"])
    assert torch.equal(module.weight, before)
    load_weights(module, {"weight": torch.ones(2, 3).half(), "bias": torch.zeros(2)})
    assert torch.equal(module.weight, torch.ones(2, 3))
