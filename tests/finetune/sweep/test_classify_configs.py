"""The shipped settings of pixel classification: every one is understood, every ablation is what it claims."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from datasets.labelled import find_set
from engine.runs import FolderConfig
from engine.settings import parse_settings
from finetune.s2fin import S2Fin, classification_loss
from finetune.s2fin.attention import SparseAttention, keep_largest
from finetune.s2fin.channels import AdaptiveFrequencyChannels
from finetune.s2fin.mixer import GruMixer, ScanMixer
from finetune.s2fin.resonance import HighFrequencyResonance
from finetune.tasks.classification_config import ClassifyConfig

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "finetune"
TASKS = sorted(FOLDER.glob("classify_*.yaml"))
OVERLAYS = {path.stem: path for path in (FOLDER / "ablations" / "s2fin").glob("*.yaml")}
SIZES = {"bands": 12, "components": 4, "channels": 2, "classes": 3}


def parsed(*files: Path) -> ClassifyConfig:
    return parse_settings(ClassifyConfig, None, [*(f"--config={file}" for file in files), "--run.dir=runs/any"])


def base_of(name: str) -> Path:
    """A setting that the overlay changes: that of Houston's patches has the GRU already."""
    return FOLDER / f"classify_{'augsburg' if name == 'gru_mixer' else 'houston2013_patches'}.yaml"


def built(name: str) -> S2Fin:
    config = parsed(base_of(name), OVERLAYS[name]).model
    return S2Fin(replace(config, width=16, patch=5, dropout=0.0), **SIZES)


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_task_is_understood(path):
    tree = parsed(path)
    assert find_set(tree.data.set)
    assert tree.seed_list == list(range(10))
    assert (tree.optim.batch, tree.optim.lr, tree.optim.betas) == (64, 1e-3, (0.9, 0.999))
    assert f"--config configs/finetune/{path.name}" in path.read_text()  # the command that runs it
    assert tree.run == FolderConfig(dir="runs/any", log_every=50, save_every=500)


def test_all_data_sets_have_a_task():
    names = "houston2013_patches houston2013 augsburg yellow_river_estuary lcz_hk idtrees_mlbs terramesh indian_pines"
    assert {path.stem for path in TASKS} == {f"classify_{name}" for name in names.split()}


def test_the_paper_s_sets_use_the_size_that_is_listed_for_it():
    """0.6 to 0.7 million parameters, docs/model.md 14.9."""
    model = parsed(FOLDER / "classify_augsburg.yaml").model
    count = sum(p.numel() for p in S2Fin(model, bands=180, components=30, channels=4, classes=7).parameters())
    assert 0.6e6 < count < 0.7e6


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_ablation_changes_the_network_alone_and_trains(name):
    base = base_of(name)
    with_it, without = parsed(base, OVERLAYS[name]), parsed(base)
    assert with_it.model != without.model
    assert replace(with_it, model=without.model) == without
    assert with_it.model.width == without.model.width
    torch.manual_seed(0)
    model = built(name)
    counts = (SIZES[key] for key in ("bands", "components", "channels"))
    prediction = model(*(torch.randn(4, count, 5, 5) for count in counts))
    loss = classification_loss(prediction, torch.tensor([0, 1, 2, 0]), model.config)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


CLAIMS = {
    "no_filter": lambda model: model.hfset is not None and model.hfset.filter is None,
    "fixed_threshold": lambda model: model.hfset.filter is not None and model.hfset.filter.threshold is None,
    "no_afcm": lambda model: not has(model, AdaptiveFrequencyChannels) and has(model, HighFrequencyResonance),
    "no_ssaf": lambda model: model.ssaf is None and model.hfset is not None,
    "no_hfrm": lambda model: not has(model, HighFrequencyResonance) and has(model, AdaptiveFrequencyChannels),
    "mask_without_phase": lambda model: has(model, HighFrequencyResonance) and model.hfrm.sharpness is None,
    "order_swapped": lambda model: model._in_order()[0] is model.hfrm and model._in_order()[1] is model.afcm,
    "passive_only": lambda model: model.branches == ["passive"] and model.hfset is not None,
    "active_only": lambda model: model.branches == ["active"] and model.hfset is None,
    "no_mixer": lambda model: isinstance(model.mixer, nn.Identity),
    "gru_mixer": lambda model: has(model, GruMixer) and not has(model, ScanMixer),
    "scan_mixer": lambda model: has(model, ScanMixer) and not has(model, GruMixer),
    "scan_without_norm": lambda model: model.mixer.gated_norm is None and model.mixer.outward.weight.any(),
    "no_all_four": lambda model: (
        model.hfset.filter is None and model.ssaf is None and not has(model, AdaptiveFrequencyChannels)
        and not has(model, HighFrequencyResonance)
    ),
}  # fmt: skip


def has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("name", CLAIMS)
def test_an_ablation_takes_away_what_it_claims(name):
    assert CLAIMS[name](built(name))


@pytest.mark.parametrize("name", ["plain_attention", "relu2_attention"])
def test_attention_ablations_weigh_scores_as_they_claim(name):
    """Plain: a softmax of all. relu2 at its start: half of that and half of the squared positive scores."""
    attention = next(module for module in built(name).modules() if isinstance(module, SparseAttention))
    scores = torch.tensor([[[2.0, -1.0, 0.0, 1.0]]])
    softmax = scores.exp() / scores.exp().sum()
    positive = torch.tensor([[[4.0, 0.0, 0.0, 1.0]]])
    expected = {"plain_attention": softmax, "relu2_attention": 0.5 * softmax + 0.5 * positive}[name]
    torch.testing.assert_close(attention.weights(scores), expected)
    assert not torch.allclose(expected, keep_largest(scores, 0.5).softmax(dim=-1))


def test_every_ablation_is_checked():
    assert set(OVERLAYS) == set(CLAIMS) | {"plain_attention", "relu2_attention"}
