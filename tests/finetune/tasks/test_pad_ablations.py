"""The shipped settings of PAD: the paper's recipe, its ablations as overlays, and early fusion, which some of them need."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alliance.errors import InputError
from datasets.labelled.augment import AugmentConfig
from engine.optim import OptimConfig
from engine.settings import parse_settings
from finetune.pad.fusion import FusionConfig
from finetune.pad.losses import LossConfig, composite_loss
from finetune.pad.model import Pad, PadConfig
from finetune.tasks.segmentation_config import SegmentConfig
from tests.helpers.models import natural_image, randomise

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "finetune"
OVERLAYS = sorted((CONFIGS / "ablations" / "pad").glob("*.yaml"))
PAPER = OptimConfig(
    batch=4, lr=1e-4, warmup=0.0, weight_decay=0.05, decay_vectors=True, betas=(0.9, 0.999), clip=0.0
)  # AdamW, decay of everything, cosine to 0, no warm-up, no clipping
RGB, SAR = natural_image(2, 3, 64, 64, seed=1), natural_image(2, 3, 64, 64, seed=2)


def parsed(base: str, *overlays: Path) -> SegmentConfig:
    files = [CONFIGS / f"{base}.yaml", *overlays]
    return parse_settings(SegmentConfig, "test", [*(f"--config={file}" for file in files), "--run.dir", "run"])


def overlaid(name: str) -> SegmentConfig:
    (file,) = [path for path in OVERLAYS if path.stem.startswith(name)]
    return parsed("segment_whu_opt_sar", file)


def atto(config: PadConfig) -> Pad:
    torch.manual_seed(0)
    return Pad(replace(config, size="atto", drop_path=0.0, dropout=0.0))


def test_the_recipe_is_the_released_one():
    tree = parsed("segment_whu_opt_sar")
    assert (tree.model, tree.loss, tree.augment) == (PadConfig(), LossConfig(), AugmentConfig())
    assert (tree.run.steps, tree.evaluate_every, tree.optim) == (80_000, 8_000, PAPER)


def test_ddhr_sk_differs_in_data_and_tile_alone():
    base, tree = parsed("segment_whu_opt_sar"), parsed("segment_ddhr_sk")
    assert tree.model == base.model and tree.augment == replace(base.augment, crop=256)
    assert (tree.run, tree.loss, tree.optim, tree.engine) == (base.run, base.loss, base.optim, base.engine)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_names_itself_and_trains(path: Path):
    assert path.name in path.read_text()
    tree = parsed("segment_whu_opt_sar", path)
    model = atto(tree.model).train()
    composite_loss(model(RGB, SAR), torch.randint(0, 7, (2, 64, 64)), tree.loss).total.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_an_overlay_changes_what_its_name_says_alone():
    base = parsed("segment_whu_opt_sar")
    for name in ("iv_full", "v_1b", "v_2b", "vi_b"):
        assert overlaid(name) == base
    for overlay in ("iv_none", "rgb_only", "vi_e"):
        assert replace(overlaid(overlay), model=base.model) == base
    assert {overlaid(f"v_1{row}").loss.auxiliary for row in "abc"} == {0.2, 0.4, 0.8}
    assert {overlaid(f"v_2{row}").loss.amplitude for row in "abc"} == {0.05, 0.1, 0.2}
    rising = overlaid("depth_weights").loss
    assert list(rising.amplitude_stages) == sorted(set(rising.amplitude_stages))  # w_1 < w_2 < w_3 < w_4
    assert replace(rising, amplitude_stages=base.loss.amplitude_stages) == base.loss
    assert overlaid("zero_biases").model == replace(base.model, encoder_bias=0.0)
    assert [overlaid(f"vi_{row}").model.fusion.radius for row in "abcde"] == [0.05, 0.1, 0.2, 0.3, 0.5]


@pytest.mark.parametrize(
    ("row", "blocks", "asf", "psc", "sar_stages"),
    [
        ("none.", 0, False, False, 1), ("msf.", 0, False, False, 4), ("asf.", 1, True, False, 1),
        ("psc.", 1, False, True, 1), ("msf_asf.", 4, True, False, 4), ("msf_psc.", 4, False, True, 4),
        ("asf_psc.", 1, True, True, 1), ("full.", 4, True, True, 4),
    ],
)  # fmt: skip
def test_the_rows_of_table_iv_are_eight_networks(row: str, blocks: int, asf: bool, psc: bool, sar_stages: int):
    (file,) = [path for path in OVERLAYS if path.name.startswith(f"iv_{row}")]
    names = set(atto(parsed("segment_whu_opt_sar", file).model).state_dict())
    fused = {name.split(".")[1] for name in names if name.startswith("fusions.")}
    assert fused == {str(stage + 1) for stage in range(blocks)}
    assert (any(".asf." in name for name in names), any(".psc." in name for name in names)) == (asf, psc)
    assert len({name.split(".")[3] for name in names if name.startswith("encoders.sar.norms")}) == sar_stages


# Early fusion


EARLY = PadConfig(early_fusion=True, fusion=FusionConfig(stages=()), classes=3)
RGB_ALONE = {"early_fusion": False, "input": "rgb"}


@pytest.mark.parametrize("norms", ["inline", "output"])
def test_early_fusion_with_a_blank_sar_map_is_the_rgb_network(norms: Any):
    """A normalised map plus zeros is that map, which with norms in line is all that stage 2 gets."""
    early, alone = (atto(replace(EARLY, stage_norms=norms, **change)).eval() for change in ({}, RGB_ALONE))
    randomise(early)
    for parameter in early.encoders["sar"].norms.parameters():
        torch.nn.init.zeros_(parameter)
    alone.load_state_dict({name: value for name, value in early.state_dict().items() if "encoders.sar" not in name})
    same = torch.allclose(early(RGB, SAR).logits, alone(RGB).logits, atol=1e-5)
    assert same == (norms == "inline")


def test_after_an_early_fusion_both_images_reach_every_map():
    model = atto(replace(EARLY, fusion=FusionConfig(stages=(1,)))).eval()
    randomise(model, std=0.05)
    other = {"rgb": natural_image(2, 3, 64, 64, seed=3), "sar": natural_image(2, 3, 64, 64, seed=4)}
    maps, penalty = model.fuse(model.encode({"rgb": RGB, "sar": SAR}))
    assert [tuple(each.shape[1:]) for each in maps] == [(40, 16, 16), (80, 8, 8), (160, 4, 4), (320, 2, 2)]
    assert penalty[0] > 0 and not penalty[1:].any()
    for name, image in other.items():
        changed, _ = model.fuse(model.encode({"rgb": RGB, "sar": SAR, name: image}))
        assert all(not torch.allclose(one, two, atol=1e-3) for one, two in zip(maps, changed, strict=True))


def test_early_fusion_keeps_the_names_of_all_other_weights():
    early = atto(replace(EARLY, fusion=FusionConfig(stages=(1,)))).state_dict()
    late = atto(replace(EARLY, early_fusion=False, fusion=FusionConfig())).state_dict()
    assert early.keys() < late.keys()
    assert all(early[name].shape == late[name].shape for name in early)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PadConfig(early_fusion=True), r"stage 1 alone.*fusion.stages \[1, 2, 3, 4\].*set input to both"),
        (lambda: PadConfig(early_fusion=True, input="sar", fusion=FusionConfig(stages=(1,))), "input 'sar'"),
        (lambda: Pad(EARLY, {}), "leave it off with other backbones"),
    ],
)
def test_early_fusion_that_cannot_be_is_refused(build: Any, message: str):
    with pytest.raises(InputError, match=message):
        build()
