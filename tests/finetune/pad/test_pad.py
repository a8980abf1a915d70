"""The PAD network: its sizes against the paper, its switches, what it refuses, and its loss."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from alliance.errors import InputError
from finetune.backbones.convnext import Backbone, ConvNeXtV2
from finetune.pad.fusion import FusionBlock, FusionConfig
from finetune.pad.losses import LossConfig, composite_loss, mean_cross_entropy
from finetune.pad.model import Pad, PadConfig, PadOutput
from tests.helpers.models import natural_image, randomise

WIDTHS = (8, 16, 24, 32)


class Pooled(Backbone):
    """The smallest encoder there is: average pooling and a 1 x 1 convolution per stride."""

    def __init__(self, in_channels: int = 3, channels: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.channels = channels
        self.project = nn.ModuleList(nn.Conv2d(in_channels, width, 1) for width in channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [conv(nn.functional.avg_pool2d(image, 4 * 2**i)) for i, conv in enumerate(self.project)]


def small_pad(fusion: FusionConfig | None = None, *, seed: int = 0, **changes: Any) -> Pad:
    """PAD on the smallest encoders, every weight with some value, in evaluation mode."""
    torch.manual_seed(seed)
    config = PadConfig(**{"classes": 3, "fusion": fusion or FusionConfig(), **changes})
    model = Pad(config, {name: Pooled(count) for name, count in config.in_channels.items()})
    randomise(model, std=0.05, seed=seed)
    return model.eval()


def pair() -> tuple[Tensor, Tensor]:
    return natural_image(2, 3, 64, 64, seed=1), natural_image(2, 3, 64, 64, seed=2)


# Sizes


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_released_network_has_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        model = Pad(PadConfig())
    assert [count(encoder) for encoder in model.encoders.values()] == [196_422_528] * 2
    assert [count(block) for block in model.fusions.values()] == [411_891, 1_644_003, 6_568_899, 26_261_379]
    assert (count(model.decoder), count(model.auxiliary)) == (11_951_879, 885_895)
    assert count(model) == 440_569_002
    assert len(model.state_dict()) == 926


def test_five_classes_take_the_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        assert count(Pad(PadConfig(classes=5))) == 440_568_230


@pytest.mark.parametrize(("h", "w"), [(32, 32), (64, 96), (70, 101)])
def test_logits_have_the_size_of_the_image(h: int, w: int) -> None:
    torch.manual_seed(0)
    model = Pad(PadConfig(size="atto", classes=5, rgb_channels=4, sar_channels=1)).eval()
    output = model(torch.randn(1, 4, h, w), torch.randn(1, 1, h, w))
    assert output.logits.shape == output.auxiliary.shape == (1, 5, h, w)
    assert output.penalty.shape == (4,) and (output.penalty > 0).all()
    assert all(value.isfinite().all() for value in output)


@pytest.mark.parametrize("size", ["atto", "tiny"])
def test_stage_maps_are_timms_after_a_layer_norm(size: Any) -> None:
    torch.manual_seed(0)
    backbone = ConvNeXtV2(size, 3, norms="output").eval()
    theirs = timm.create_model(f"convnextv2_{size}", num_classes=0, conv_mlp=False).eval()
    names = {name: value for name, value in backbone.state_dict().items() if not name.startswith("norms")}
    theirs.load_state_dict({**theirs.state_dict(), **names})
    randomise(backbone.norms)
    image = natural_image(1, 3, 64, 64)
    for ours, expected, norm in zip(
        backbone(image), theirs.forward_intermediates(image, intermediates_only=True), backbone.norms, strict=True
    ):
        centred = expected - expected.mean(1, keepdim=True)
        centred = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        scaled = norm.weight[:, None, None] * centred + norm.bias[:, None, None]
        assert torch.allclose(ours, scaled, atol=1e-4)


def test_norms_in_line_change_the_later_stages_only_once_they_are_trained() -> None:
    torch.manual_seed(0)
    inline, output = ConvNeXtV2("atto").eval(), ConvNeXtV2("atto", norms="output").eval()
    output.load_state_dict(inline.state_dict())
    image = natural_image(1, 3, 64, 64)
    assert all(torch.allclose(one, two, atol=1e-3) for one, two in zip(inline(image), output(image), strict=True))
    for backbone in (inline, output):
        randomise(backbone.norms)
    first, *later = [(one - two).abs().max() for one, two in zip(inline(image), output(image), strict=True)]
    assert first == 0 and min(later) > 0.01


@pytest.mark.parametrize("channels", [8, 16, 192, 384, 768, 1536])
def test_a_fusion_block_has_the_parameters_of_the_paper(channels: int) -> None:
    with torch.device("meta"):
        block = FusionBlock(channels, FusionConfig())
    assert count(block) == 11.125 * channels**2 + 9.25 * channels + 3


# Switches


SAME_WEIGHTS: dict[str, dict[str, Any]] = {
    "true radius": {"spectrum_layout": "true_radius"},
    "another radius": {"radius": -2.197},
    "fixed radius": {"radius_trainable": False},
    "one residual": {"second_residual": False},
}


@pytest.mark.parametrize("change", SAME_WEIGHTS.values(), ids=SAME_WEIGHTS)
def test_these_switches_leave_the_weights_as_they_are(change: dict[str, Any]) -> None:
    assert small_pad(FusionConfig(**change)).state_dict().keys() == small_pad().state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"fusion": FusionConfig(asf=False)}, ".asf."),
        ({"fusion": FusionConfig(psc=False)}, ".psc."),
        ({"fusion": FusionConfig(stages=(1, 2, 4))}, "fusions.3."),
        ({"fusion": FusionConfig(stages=())}, "fusions."),
        ({"input": "rgb"}, ("fusions.", "encoders.sar.")),
        ({"input": "sar"}, ("fusions.", "encoders.rgb.")),
    ],
    ids=["asf", "psc", "stage", "stages", "rgb", "sar"],
)
def test_these_switches_take_away_their_own_weights_alone(changes: dict[str, Any], gone: str | tuple[str, ...]) -> None:
    def belongs(name: str) -> bool:
        return name.startswith(gone) or (isinstance(gone, str) and gone in name)

    kept = {name for name in small_pad().state_dict() if not belongs(name)}
    assert small_pad(**changes).state_dict().keys() == kept


def with_weights_of(model: Pad, fusion: FusionConfig) -> Pad:
    other = small_pad(fusion)
    other.load_state_dict({name: value for name, value in model.state_dict().items() if name in other.state_dict()})
    return other


def test_without_asf_the_block_does_what_an_idle_asf_does() -> None:
    model = small_pad()
    for block in model.fusions.values():
        nn.init.zeros_(block.asf.mix.weight)
        nn.init.zeros_(block.asf.mix.bias)
    without = with_weights_of(model, FusionConfig(asf=False))
    one, two = model(*pair()), without(*pair())
    assert torch.allclose(one.logits, two.logits, atol=1e-5)
    assert not one.penalty.any() and not two.penalty.any()


def test_without_psc_the_block_does_what_an_idle_psc_does() -> None:
    model = small_pad()
    for block in model.fusions.values():
        nn.init.constant_(block.psc.attention[2].bias, -1e4)
    without = with_weights_of(model, FusionConfig(psc=False))
    one, two = model(*pair()), without(*pair())
    assert torch.allclose(one.logits, two.logits, atol=1e-5)
    assert one.penalty.tolist() == pytest.approx(two.penalty.tolist())


def test_a_stage_without_fusion_adds_its_maps_and_leaves_the_others() -> None:
    model, images = small_pad(), pair()
    without = with_weights_of(model, FusionConfig(stages=(1, 2, 4)))
    pyramids = [encoder(image) for encoder, image in zip(model.encoders.values(), images, strict=True)]
    (full, penalty), (fewer, less) = model.fuse(pyramids), without.fuse(pyramids)
    assert all(torch.equal(full[i], fewer[i]) for i in (0, 1, 3))
    assert torch.equal(fewer[2], pyramids[0][2] + pyramids[1][2])
    third = model.fusions["3"](pyramids[0][2], pyramids[1][2])[1].item()
    assert (penalty - less).tolist() == pytest.approx([0, 0, third, 0], rel=1e-4)


@pytest.mark.parametrize("name", ["rgb", "sar"])
def test_one_modality_needs_and_sees_itself_alone(name: Any) -> None:
    model = small_pad(input=name)
    rgb, sar = pair()
    own, other = (rgb, sar) if name == "rgb" else (sar, rgb)
    output = model(rgb, sar)
    assert torch.equal(model(**{name: own}).logits, output.logits)
    assert not torch.equal(model(**{name: other}).logits, output.logits)
    assert not output.penalty.any()


def test_the_radius_and_the_layout_change_the_result() -> None:
    model = small_pad()
    reference = model(*pair()).logits
    narrow = small_pad(FusionConfig(radius=-2.197))
    true = with_weights_of(model, FusionConfig(spectrum_layout="true_radius"))
    assert not torch.allclose(reference, narrow(*pair()).logits, atol=1e-6)
    assert not torch.allclose(reference, true(*pair()).logits, atol=1e-6)


# The model


def test_every_parameter_learns_and_the_penalty_is_returned_not_kept() -> None:
    model = small_pad().train()
    output = model(*pair())
    labels = torch.randint(0, 3, (2, 64, 64))
    composite_loss(output, labels, LossConfig()).total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    assert not [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def test_the_penalty_is_told_stage_by_stage() -> None:
    model, images = small_pad(), pair()
    pyramids = [encoder(image) for encoder, image in zip(model.encoders.values(), images, strict=True)]
    each = [model.fusions[str(i + 1)](pyramids[0][i], pyramids[1][i])[1].item() for i in range(4)]
    assert model(*images).penalty.tolist() == pytest.approx(each, rel=1e-5)


def test_rgb_comes_first() -> None:
    model, (rgb, sar) = small_pad(), pair()
    assert not torch.allclose(model(rgb, sar).logits, model(sar, rgb).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((torch.zeros(1, 3, 64, 64), None), "the sar image is missing"),
        ((torch.zeros(1, 4, 64, 64), torch.zeros(1, 3, 64, 64)), r"rgb is \(1, 4, 64, 64\).*set rgb_channels"),
        ((torch.zeros(1, 3, 31, 64), torch.zeros(1, 3, 31, 64)), "at least 32 x 32"),
        ((torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64)), "not \\(b, 3, h, w\\)"),
        ((torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 96)), "differ in count or size"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: tuple[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small_pad()(*images)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PadConfig(size="giant"), "size 'giant' is not one of atto"),
        (lambda: PadConfig(input="lidar"), "input 'lidar'"),
        (lambda: PadConfig(stage_norms="none"), "stage_norms 'none'"),
        (lambda: PadConfig(classes=0), "PadConfig.classes is 0; give a whole number from 1 to 254"),
        (lambda: FusionConfig(stages=(0, 1)), "FusionConfig.stages is 0; give a whole number from 1 to 4"),
        (lambda: FusionConfig(stages=(1, 1)), r"fusion.stages \[1, 1\]"),
        (lambda: FusionConfig(spectrum_layout="shifted"), "fusion.spectrum_layout 'shifted'"),
        (lambda: Pad(PadConfig(), {"rgb": Pooled()}), r"backbones are for \['rgb'\]"),
        (lambda: Pad(PadConfig(), {"rgb": Pooled(), "sar": Pooled(3, (8, 16, 24, 40))}), "channels of the backbones"),
    ],
)
def test_settings_that_do_not_fit_are_refused(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_autocast_changes_the_logits_by_rounding_alone() -> None:
    model, images = small_pad(), pair()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*images)
    exact = model(*images)
    assert (rounded.logits.float() - exact.logits).std() < 0.1 * exact.logits.std()
    assert rounded.penalty.tolist() == pytest.approx(exact.penalty.tolist(), rel=0.05)


def test_no_parameter_or_buffer_is_complex() -> None:
    assert not [name for name, value in small_pad().state_dict().items() if value.is_complex()]


# The start


def pairs_with_zeros(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    rgb, sar = natural_image(2, 3, 64, 64, seed=seed), natural_image(2, 3, 64, 64, seed=seed + 100)
    for image in (rgb, sar) if kind in ("margin", "empty") else ():
        image[..., 40:, :] = 0
        image[..., 48:] = 0
    if kind == "one flat image":
        rgb[:] = 0
    if kind == "empty":
        rgb[:], sar[:] = 0, 0
    if kind == "nearly flat":
        rgb, sar = 0.7 + 1e-4 * rgb, 1e-4 * sar - 1
    return rgb, sar


def first_gradient(config: PadConfig, kind: str, seed: int) -> float:
    """Norm of the first batch's gradient over all parameters."""
    torch.manual_seed(seed)
    model = Pad(config).train()
    labels = torch.randint(0, config.classes, (2, 64, 64), generator=torch.Generator().manual_seed(seed))
    composite_loss(model(*pairs_with_zeros(kind, seed)), labels, LossConfig()).total.backward()
    return torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()


@pytest.mark.parametrize("kind", ["natural", "margin", "one flat image", "empty", "nearly flat"])
def test_the_first_gradient_is_small_whatever_the_images(kind: str) -> None:
    norms = [first_gradient(PadConfig(size="atto"), kind, seed) for seed in range(3)]
    assert max(norms) < 10, norms


def test_without_biases_pixels_of_zeros_blow_the_first_gradient_up() -> None:
    """So that the test above shows something: sqrt(1e-6) is what layer norm divides a vector of zeros by."""
    assert not first_gradient(PadConfig(size="atto", encoder_bias=0.0), "empty", 0) < 1000


def test_drawing_biases_changes_them_alone() -> None:
    def built(**changes: Any) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        return Pad(PadConfig(size="atto", **changes)).state_dict(), torch.rand(3)

    (plain, after), (drawn, later) = built(encoder_bias=0.0), built()
    assert torch.equal(after, later)  # nor what is drawn next, such as which blocks are skipped
    changed = {name for name, value in drawn.items() if not torch.equal(value, plain[name])}
    layers = {
        name.removesuffix(".weight") for name, value in plain.items() if name.endswith(".weight") and value.ndim > 1
    }
    encoders = {f"{name}.bias" for name in layers if name.startswith("encoders.")}
    assert changed == {name for name in encoders if ".grn." not in name}
    values = torch.cat([drawn[name] for name in changed])
    assert not any(plain[name].any() for name in changed)
    assert (values.mean().item(), values.std().item()) == pytest.approx((0, 0.02), abs=1e-3)


# The loss


def uniform_output(classes: int = 4, penalty: Sequence[float] = (0.2, 0.5, 0.0, 1.3)) -> PadOutput:
    logits = torch.zeros(1, classes, 2, 2, requires_grad=True)
    sharp = torch.zeros(1, classes, 2, 2)
    sharp[:, 0] = math.log(classes - 1)  # class 0 as likely as all others together
    return PadOutput(logits, sharp.requires_grad_(), torch.tensor(penalty))


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    labels = torch.tensor([[[0, 0], [255, 0]]])
    losses = composite_loss(uniform_output(), labels, LossConfig())
    assert losses.segmentation.item() == pytest.approx(math.log(4))
    assert losses.auxiliary.item() == pytest.approx(math.log(2))
    assert losses.amplitude.item() == pytest.approx(2)
    assert losses.total.item() == pytest.approx(math.log(4) + 0.4 * math.log(2) + 0.1 * 2)


@pytest.mark.parametrize(("auxiliary", "amplitude"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_loss_weights_change_the_total_alone(auxiliary: float, amplitude: float) -> None:
    labels = torch.zeros(1, 2, 2, dtype=torch.uint8)
    losses = composite_loss(uniform_output(), labels, LossConfig(auxiliary=auxiliary, amplitude=amplitude))
    assert losses.total.item() == pytest.approx(math.log(4) + auxiliary * math.log(2) + amplitude * 2)
    assert losses[1:] == composite_loss(uniform_output(), labels, LossConfig())[1:]


def test_stages_of_the_penalty_weigh_as_equation_21_says() -> None:
    """L_amp = sum_s w_s P_s, by hand: 0.5 * 0.2 + 0.6 * 0.5 + 0.8 * 0 + 1 * 1.3."""
    config = LossConfig(amplitude=3.0, amplitude_stages=(0.5, 0.6, 0.8, 1.0))
    losses = composite_loss(uniform_output(), torch.zeros(1, 2, 2, dtype=torch.uint8), config)
    assert losses.amplitude.item() == pytest.approx(1.7)
    assert losses.total.item() == pytest.approx(math.log(4) + 0.4 * math.log(2) + 3 * 1.7)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, -1.0, 1.0, 1.0)])
def test_weights_of_the_stages_that_do_not_fit_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="amplitude_stages"):
        LossConfig(amplitude_stages=weights)


def test_ignored_pixels_do_not_count() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[:, 1:3] = 255
    chosen = torch.log_softmax(logits, 1).movedim(1, -1)[labels != 255]
    expected = -chosen.gather(1, labels[labels != 255][:, None]).mean()
    assert mean_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_that_are_all_ignored_give_zero_and_no_gradient() -> None:
    output = uniform_output()
    losses = composite_loss(output, torch.full((1, 2, 2), 255), LossConfig())
    assert losses.segmentation.item() == losses.auxiliary.item() == 0
    assert losses.total.item() == pytest.approx(0.1 * 2)
    losses.total.backward()
    assert output.logits.grad is not None and not output.logits.grad.any()


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels are \(1, 4, 4\), logits \(1, 4, 2, 2\)"):
        composite_loss(uniform_output(), torch.zeros(1, 4, 4, dtype=torch.long), LossConfig())


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PadConfig().classes = 3
