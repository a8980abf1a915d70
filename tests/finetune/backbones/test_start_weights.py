"""What a PAD network begins with: timm's ConvNeXt V2 in both encoders, another run's network, or a refusal."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from alliance.errors import InputError
from finetune.backbones.convnext import ConvNeXtV2
from finetune.pad.checkpoint import save_pad
from finetune.pad.fusion import FusionConfig
from finetune.pad.model import Pad, PadConfig
from finetune.pad.start import StartConfig, load_start
from tests.helpers.models import natural_image, randomise

ATTO = PadConfig(size="atto", classes=3)
Write = Callable[[dict[str, Tensor], Path], None]
WRITERS: dict[str, Write] = {
    ".safetensors": save_file,
    ".pth": torch.save,
    ".bin": lambda state, path: torch.save({"model": state}, path),
}


@pytest.fixture(scope="module")
def atto() -> Any:
    """timm's network as it is built by default: linear layers as 1 x 1 convolutions; no weight as at its start."""
    torch.manual_seed(0)
    model = timm.create_model("convnextv2_atto").eval()
    randomise(model, std=0.05)
    return model


def written(model: Any, folder: Path, suffix: str = ".safetensors") -> str:
    path = folder / f"convnextv2{suffix}"
    WRITERS[suffix](model.state_dict(), path)
    return str(path)


def network(seed: int = 1, **changes: Any) -> Pad:
    torch.manual_seed(seed)
    return Pad(PadConfig(**{"size": "atto", "classes": 3, **changes})).eval()


def same_weights(encoder: ConvNeXtV2, theirs: Any, stages: int = 4) -> bool:
    """Whether stem and stages hold timm's numbers, each under timm's name."""
    state = encoder.state_dict()
    names = [name for name in state if not name.startswith("norms.")]
    found = {name.split(".")[1] for name in names if name.startswith("stages.")}
    assert len(found) == stages and "stem.0.weight" in names
    given = theirs.state_dict()
    return all(torch.equal(state[name].flatten(), given[name].flatten()) for name in names)


@pytest.mark.parametrize("suffix", WRITERS)
def test_both_encoders_begin_with_timm_s_weights(atto: Any, tmp_path: Path, suffix: str) -> None:
    """So stage 1 gives timm's map, whose channels the encoder then normalises at every place."""
    model = network()
    load_start(model, StartConfig(convnext=written(atto, tmp_path, suffix)))
    for encoder in model.encoders.values():
        assert same_weights(encoder, atto)
    image = natural_image(1, 3, 64, 64)
    with torch.no_grad():
        theirs = atto.forward_intermediates(image, indices=[0], intermediates_only=True)[0]
        expected = (theirs - theirs.mean(dim=1, keepdim=True)) / theirs.var(dim=1, keepdim=True, correction=0).sqrt()
        for encoder in model.encoders.values():
            torch.testing.assert_close(encoder(image)[0], expected, atol=1e-4, rtol=1e-3)


def test_heads_fusion_and_norms_keep_their_own_start(atto: Any, tmp_path: Path) -> None:
    model, untouched = network(), network().state_dict()
    load_start(model, StartConfig(convnext=written(atto, tmp_path)))
    changed = {name for name, value in model.state_dict().items() if not value.equal(untouched[name])}
    assert changed and all(".stem." in name or ".stages." in name for name in changed)


def test_larger_sizes_whose_layers_are_linear_fit_as_they_are(tmp_path: Path) -> None:
    """timm writes the sizes from tiny on so; atto built that way has the same names and shapes as those."""
    torch.manual_seed(3)
    linear: Any = timm.create_model("convnextv2_atto", conv_mlp=False, num_classes=0)
    model = network()
    load_start(model, StartConfig(convnext=written(linear, tmp_path)))
    assert all(same_weights(encoder, linear) for encoder in model.encoders.values())


def test_after_an_early_fusion_the_sar_encoder_has_one_stage_to_fill(atto: Any, tmp_path: Path) -> None:
    model = network(early_fusion=True, fusion=FusionConfig(stages=(1,)))
    load_start(model, StartConfig(convnext=written(atto, tmp_path)))
    assert same_weights(model.encoders["rgb"], atto) and same_weights(model.encoders["sar"], atto, stages=1)


def test_a_network_of_one_image_fills_its_encoder(atto: Any, tmp_path: Path) -> None:
    model = network(input="sar")
    load_start(model, StartConfig(convnext=written(atto, tmp_path)))
    assert same_weights(model.encoders["sar"], atto)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_another_size_are_refused_with_a_table(tmp_path: Path, suffix: str) -> None:
    """femto is 48, 96, ... channels wide, as deep as atto."""
    file, model = written(timm.create_model("convnextv2_femto"), tmp_path, suffix), network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as refused:
        load_start(model, StartConfig(convnext=file))
    first, *rows = str(refused.value).splitlines()
    assert first == f"{file} does not fit the network:"
    assert rows[0] == "  reshaped    stem.0.weight (48, 3, 4, 4) -> (40, 3, 4, 4)"
    assert 3 < len(rows) <= 41  # the last one counts the rest
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_grey_image_gives_one_band_what_it_gives_three(atto: Any, tmp_path: Path) -> None:
    model = network(sar_channels=1)
    load_start(model, StartConfig(convnext=written(atto, tmp_path)))
    grey, stem = torch.rand(2, 1, 32, 32), model.encoders["sar"].stem
    assert torch.allclose(stem(grey), atto.stem(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"missing     stem.0.weight \(40, 3, 4, 4\)"):
        load_start(network(), StartConfig(convnext=str(tmp_path / "other.safetensors")))


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pth", "text.safetensors", "text.pth"])
def test_files_without_weights_are_refused(tmp_path: Path, name: str) -> None:
    for suffix in (".safetensors", ".pth"):
        (tmp_path / f"text{suffix}").write_text("no weights")
    with pytest.raises(InputError, match=name) as refused:
        load_start(network(), StartConfig(convnext=str(tmp_path / name)))
    assert "\n" not in str(refused.value)


def test_a_network_begins_as_another_run_s(tmp_path: Path) -> None:
    """Given as the run's folder or its `model`; the outcome is the same network."""
    theirs = network(seed=5)
    randomise(theirs, std=0.05)
    save_pad(ATTO, theirs.state_dict(), tmp_path / "run" / "model")
    images = natural_image(1, 3, 64, 64, seed=1), natural_image(1, 3, 64, 64, seed=2)
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        model = network()
        load_start(model, StartConfig(network=str(place)))
        assert torch.equal(model(*images).logits, theirs(*images).logits)


def test_an_early_fusion_network_begins_as_another_and_not_as_a_plain_one(tmp_path: Path) -> None:
    early = {"early_fusion": True, "fusion": FusionConfig(stages=(1,))}
    theirs = network(seed=5, **early)
    save_pad(theirs.config, theirs.state_dict(), tmp_path / "early")
    model = network(**early)
    load_start(model, StartConfig(network=str(tmp_path / "early")))
    assert all(value.equal(theirs.state_dict()[name]) for name, value in model.state_dict().items())
    save_pad(ATTO, network().state_dict(), tmp_path / "plain")
    with pytest.raises(InputError, match=r"unexpected  encoders.sar.stages.1"):
        load_start(network(**early), StartConfig(network=str(tmp_path / "plain")))


def test_given_both_the_network_wins(atto: Any, tmp_path: Path) -> None:
    theirs = network(seed=5)
    save_pad(ATTO, theirs.state_dict(), tmp_path / "model")
    model = network()
    load_start(model, StartConfig(network=str(tmp_path / "model"), convnext=written(atto, tmp_path)))
    assert all(value.equal(theirs.state_dict()[name]) for name, value in model.state_dict().items())


def test_other_channels_begin_anew_and_the_rest_as_the_network(tmp_path: Path) -> None:
    theirs = network(seed=5)
    save_pad(ATTO, theirs.state_dict(), tmp_path / "model")
    model = network(sar_channels=2)
    load_start(model, StartConfig(network=str(tmp_path / "model")))
    state, given = model.state_dict(), theirs.state_dict()
    anew = {name for name in state if state[name].shape != given[name].shape}
    assert anew == {"encoders.sar.stem.0.weight"}
    assert all(state[name].equal(given[name]) for name in state if name not in anew)


def authors_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """ConvNeXt V2 as its authors' code names and shapes it (facebookresearch/ConvNeXt-V2, models/convnextv2.py)."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        name = name.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        name = name.replace("head.norm.", "norm.").replace("head.fc.", "head.")
        value = value[:, :, 0, 0] if ".pwconv" in name and value.ndim == 4 else value
        renamed[name] = value.reshape(1, 1, 1, -1) if ".grn." in name else value
    return renamed


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": authors_names(state)},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
        lambda state: {"state_dict": {name: value + 1 for name, value in state.items()}, "state_dict_ema": state},
    ],
    ids=["authors", "ddp", "lightning", "ema"],
)
@pytest.mark.parametrize("modern", [True, False], ids=["zip", "before torch 1.6"])
def test_files_as_they_go_around_start_both_encoders(atto: Any, tmp_path: Path, wrap: Any, modern: bool) -> None:
    torch.save(wrap(atto.state_dict()), tmp_path / "file.pth", _use_new_zipfile_serialization=modern)
    model = network()
    load_start(model, StartConfig(convnext=str(tmp_path / "file.pth")))
    assert same_weights(model.encoders["rgb"], atto) and same_weights(model.encoders["sar"], atto)
