"""The network of dense tasks: heads against an independent reading of their papers, joining of images, files."""

import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor, nn

from alliance.errors import InputError
from datasets.imagery.images import ImageSource
from finetune.backbones.alliance_encoder import InputSensor, TransferConfig, TransferredEncoder
from finetune.backbones.pyramid import PyramidConfig
from finetune.dense.checkpoint import load_dense, save_dense
from finetune.dense.losses import DenseLossConfig, dense_loss, dice_loss, mean_cross_entropy
from finetune.dense.model import HEADS, DenseConfig, DenseNetwork
from finetune.heads import DPTHead, FPNHead
from finetune.model_files import Inputs, image_input
from tests.helpers.models import randomise

RGB, SAR = InputSensor(sensor="rgb-uint8"), InputSensor(sensor="sentinel1-grd-db", bands=("VV",))
NANO = "alliance_nano_patch8"
each_head = pytest.mark.parametrize("head", HEADS)


def network(
    head: str = "fpn", *, joining: str = "concat", mode: str = "frozen", **sensors: InputSensor
) -> DenseNetwork:
    torch.manual_seed(0)
    encoder = TransferConfig(model=NANO, mode=mode, sensors=sensors)
    config = DenseConfig(encoder=encoder, head=head, pyramid=PyramidConfig(widths=(8, 8, 8, 8), stem=4), width=8)
    counts = {role: 1 if sensor is SAR else 3 for role, sensor in sensors.items()}
    model = DenseNetwork(config, counts, 3, joining=joining)
    randomise(model, std=0.1)
    return model.eval()


@each_head
def test_every_head_labels_every_pixel_of_any_size(head: str) -> None:
    model = network(head, optical=RGB, sar=SAR)
    logits = model(optical=torch.randn(2, 3, 41, 70), sar=torch.randn(2, 1, 41, 70)).logits
    assert logits.shape == (2, 3, 41, 70) and logits.isfinite().all()


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_a_linear_head_labels_places_where_they_are(patch: int) -> None:
    """Tokens of a size that does not divide the image: the logits of a token lie at its own middle."""
    encoder = TransferConfig(model=NANO, sensors={"optical": RGB})
    record = TransferredEncoder(encoder, {"optical": 3}).record()
    record["encoder"]["patch"] = patch
    torch.manual_seed(0)
    model = DenseNetwork(DenseConfig(encoder=encoder, head="linear"), {"optical": 3}, 2, record=record)
    randomise(model, std=0.1)
    model.eval()
    seen: list[Tensor] = []
    model.head.register_forward_hook(lambda _, __, given: seen.append(given))
    found = model(optical=torch.randn(1, 3, 96, 96)).logits
    middle = slice(patch // 2 - 1, patch // 2 + 1)
    for row in (1, 2, 3):
        own = found[..., row * patch : (row + 1) * patch, patch : 2 * patch][..., middle, middle].mean(dim=(-2, -1))
        around = seen[0][..., row - 1 : row + 2, 0:3]
        weights = torch.tensor([1, 4 * patch - 2, 1]) / (
            4 * patch
        )  # a quarter pixel off the middle, half a pixel apart
        expected = (around * weights[:, None] * weights).sum(dim=(-2, -1))
        assert torch.allclose(own, expected, atol=1e-5)


@each_head
def test_padding_on_the_right_and_below_changes_nothing(head: str) -> None:
    """An image of 40 x 50 pixels is filled up with means; given filled up, the logits are those of its pixels."""
    model, image = network(head, optical=RGB), torch.randn(1, 3, 40, 50)
    filled = nn.functional.pad(image, (0, 14, 0, 24))
    assert torch.allclose(model(optical=image).logits, model(optical=filled).logits[..., :40, :50], atol=1e-5)


def test_the_linear_head_is_a_linear_map_of_normalised_tokens() -> None:
    model, image = network("linear", optical=RGB), torch.randn(1, 3, 32, 32)
    tokens = model.encoder.maps(image, "optical", 1)[0].movedim(1, -1)
    reader, classify = model.readers[0], model.head.get_submodule("conv_seg")
    assert isinstance(reader.norm, nn.LayerNorm) and isinstance(classify, nn.Conv2d)
    normalised = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    normalised = normalised * reader.norm.weight + reader.norm.bias
    expected = (normalised @ classify.weight[:, :, 0, 0].T + classify.bias).movedim(-1, 1)  # (1, 3, 4, 4)
    found = model(optical=image).logits
    middles = (
        found[..., 3::8, 3::8] / 4
        + found[..., 4::8, 4::8] / 4
        + found[..., 3::8, 4::8] / 4
        + found[..., 4::8, 3::8] / 4
    )
    assert torch.allclose(middles[..., 1:3, 1:3], _blurred(expected)[..., 1:3, 1:3], atol=1e-4)


def _blurred(maps: Tensor) -> Tensor:
    """What bilinear interpolation by 8 gives on average at the four pixels around a middle: 15/16 of it along each axis."""
    kernel = torch.tensor([1 / 32, 15 / 16, 1 / 32])
    weights = (kernel[:, None] * kernel).expand(maps.shape[1], 1, 3, 3)
    return nn.functional.conv2d(maps, weights, padding=1, groups=maps.shape[1])


def test_constant_maps_go_through_the_fpn_as_worked_by_hand() -> None:
    """With identities inside and one channel, level i holds the sum of maps i to 3, and the levels are summed."""
    head = FPNHead([1, 1, 1, 1], 1, width=1).eval()
    for conv in head.lateral_convs:
        nn.init.ones_(conv.weight), nn.init.zeros_(conv.bias)
    for layer in head.fpn_convs:
        nn.init.zeros_(layer.conv.weight)
        layer.conv.weight.data[0, 0, 1, 1] = math.sqrt(1 + 1e-5)
    nn.init.ones_(head.conv_seg.weight), nn.init.zeros_(head.conv_seg.bias)
    maps = [torch.full((1, 1, 16 // 2**i, 16 // 2**i), 10.0**i) for i in range(4)]
    found = head(maps)
    assert found.shape == (1, 1, 16, 16)
    assert found[0, 0, 8, 8].item() == pytest.approx(1111 + 1110 + 1100 + 1000, rel=1e-4)


def test_dpt_doubles_the_finest_map_and_sees_the_coarsest() -> None:
    torch.manual_seed(0)
    head = DPTHead([2, 2, 2, 2], 3, width=4).eval()
    maps = [torch.randn(1, 2, 16 // 2**i, 16 // 2**i) for i in range(4)]
    found = head(maps)
    assert found.shape == (1, 3, 32, 32)
    for level in range(4):
        changed = [one + (index == level) for index, one in enumerate(maps)]
        assert not torch.allclose(head(changed), found)


def test_a_change_network_shares_what_reads_one_sensor_and_is_siamese() -> None:
    same, apart = network(joining="change", before=RGB, after=RGB), network(joining="change", before=RGB, after=SAR)
    assert len(same.readers) == 1 and len(apart.readers) == 2
    image = torch.randn(1, 3, 32, 32)
    head = same.head
    seen: list[list[Tensor]] = []
    head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    same(before=image, after=image)
    for level in seen[0]:
        first, second, difference = level.chunk(3, dim=1)
        assert torch.equal(first, second) and not difference.any()
    same(before=image, after=image.flip(-1))
    first, second, difference = seen[1][0].chunk(3, dim=1)
    assert torch.allclose(difference, (second - first).abs()) and difference.any()


def test_two_images_of_one_sensor_side_by_side_are_read_apart() -> None:
    assert len(network(first=RGB, second=RGB).readers) == 2


@pytest.mark.parametrize("mode", ["frozen", "full", "lora"])
def test_what_learns_of_the_encoder(mode: str) -> None:
    model = network("upernet", mode=mode, optical=RGB)
    assert all(
        parameter.requires_grad for name, parameter in model.named_parameters() if not name.startswith("encoder")
    )
    learns = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert bool(learns) == (mode != "frozen") and (
        mode != "lora" or all(name.endswith(("up", "down")) for name in learns)
    )


@pytest.mark.parametrize(("joining", "mode"), [("concat", "lora"), ("change", "full")])
def test_a_written_network_predicts_the_same(joining: str, mode: str, tmp_path: Path) -> None:
    model = network("dpt", joining=joining, mode=mode, before=RGB, after=RGB)
    source = ImageSource(bands=(1, 2, 3), mean=(1, 2, 3), std=(1, 1, 1))
    images = {role: image_input(source) for role in ("before", "after")}
    save_dense(model, model.state_dict(), tmp_path, Inputs(classes=dict.fromkeys("xyz", (0, 0, 0)), images=images))
    given = {"before": torch.randn(1, 3, 40, 33), "after": torch.randn(1, 3, 40, 33)}
    assert torch.allclose(load_dense(tmp_path)(**given).logits, model(**given).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: network(joining="change", before=RGB), "joining 'change' of 1 images"),
        (lambda: network(optical=RGB)(sar=torch.zeros(1, 1, 32, 32)), "the optical image is missing; give one of (b, 3, h, w)"),
        (lambda: network(optical=RGB)(optical=torch.zeros(1, 2, 32, 32)), "the optical image is (1, 2, 32, 32)"),
        (lambda: DenseConfig(head="unet"), "head 'unet' is not one of linear, fpn, upernet, dpt"),
        (lambda: DenseConfig(encoder=TransferConfig(sensors={"x": RGB})).with_sensors({"y": ImageSource()}),
         "encoder.sensors names the input x; the inputs are y"),
        (lambda: DenseLossConfig(class_weights=(1, 2)).weights({}, 3), "loss.class_weights has 2 numbers for 3 classes"),
        (lambda: DenseLossConfig(class_weights=(1, 2), balance="log"), "give one of the two"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message: str) -> None:
    with pytest.raises(InputError) as refused:
        change()
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_the_sensor_of_a_description_is_taken_in_the_order_of_its_bands() -> None:
    source = ImageSource(sensor="rgb-uint8", bands=("B", 1))
    found = (
        DenseConfig()
        .with_sensors(
            {
                "optical": source,
            }
        )
        .encoder.sensors["optical"]
    )
    assert (found.sensor, found.bands) == ("rgb-uint8", ("B", "R"))


def test_weighted_cross_entropy_is_that_of_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5)), torch.tensor([1.0, 2, 5])
    labels[0, 0] = 255
    known = labels != 255
    chances = logits.softmax(1).movedim(1, -1)[known].numpy()
    for given, sample in ((None, None), (weights, weights[labels[known]].numpy())):
        expected = log_loss(labels[known].numpy(), chances, sample_weight=sample, labels=[0, 1, 2])
        assert mean_cross_entropy(logits, labels, given).item() == pytest.approx(expected, rel=1e-5)


def test_dice_of_hand_worked_cases() -> None:
    """Two pixels of class 0, one of 1, one without a label; class 2 does not occur."""
    labels = torch.tensor([[[0, 0, 1, 255]]])
    sure = 50 * nn.functional.one_hot(torch.tensor([[[0, 0, 1, 2]]]), 3).movedim(-1, 1).float()
    assert dice_loss(sure, labels).item() == pytest.approx(0, abs=1e-6)
    even = torch.zeros(1, 3, 1, 4)
    zero, one = 1 - 2 * (2 / 3) / (1 + 2), 1 - 2 * (1 / 3) / (1 + 1)
    assert dice_loss(even, labels).item() == pytest.approx((zero + one) / 2)
    both = dense_loss(even, labels, DenseLossConfig(dice=2), None)
    assert both["loss"].item() == pytest.approx(math.log(3) + zero + one)


def test_nothing_labelled_is_no_loss() -> None:
    nothing = torch.full((1, 4, 4), 255)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    losses = dense_loss(logits, nothing, DenseLossConfig(dice=1), torch.ones(3))
    losses["loss"].backward()
    assert losses["loss"].item() == 0 and logits.grad is not None and not logits.grad.any()


def test_rare_classes_weigh_more_by_the_logarithm() -> None:
    weights = DenseLossConfig(balance="log").weights({0: 90, 1: 10, 255: 300}, 3)
    assert weights is not None
    assert weights.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])
