"""Settings: defaults < YAML < command line, every shipped file loads, every mistake is named."""

from pathlib import Path

import pytest
import yaml

from alliance.errors import InputError
from alliance.model import SIZES, AllianceConfig, model_config
from engine.settings import parse_settings, to_record
from pretrain.config import PretrainConfig
from pretrain.run import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "pretrain"
NEEDED = ["--run.dir", "run", "--data.sources", "[{shards: here}]"]


def parsed(*arguments: str) -> PretrainConfig:
    return parse_settings(PretrainConfig, "test", [*NEEDED, *arguments])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads(path: Path):
    parsed("--config", str(path))


@pytest.mark.parametrize("size", [size for size in SIZES if size != "nano"])
def test_the_file_of_a_size_is_the_named_model(size: str):
    assert parsed("--config", str(CONFIGS / f"{size}.yaml")).model == model_config(f"alliance_{size}_patch8")


def test_nano_has_the_named_encoder():
    """Its decoder is smaller than the named model's: it shall train in a minute on two cores."""
    named = model_config("alliance_nano_patch8")
    assert parsed("--config", str(CONFIGS / "nano.yaml")).model.encoder == named.encoder


def test_the_baseline_is_a_change_of_four_settings():
    config = parsed("--config", str(CONFIGS / "small.yaml"), "--config", str(CONFIGS / "baseline.yaml")).model
    assert (config.encoder.tokens, config.encoder.amplitude) == ("plain", False)
    assert (config.decoder.stages, config.decoder.attention) == (1, "plain")
    assert config.encoder.embed_dim == SIZES["small"][0]


def test_the_command_line_wins_over_the_file(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 1e-3, batch: 64}\n")
    config = parsed("--config", str(file), "--optim.lr", "5e-4")
    assert (config.optim.lr, config.optim.batch, config.optim.clip) == (5e-4, 64, 1.0)


def test_a_bare_off_in_a_file_means_off(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("run: {wandb: off}\n")
    assert parsed("--config", str(file)).run.wandb == "off"


def test_the_saved_settings_give_the_same_run_again(tmp_path: Path):
    config = parsed("--config", str(CONFIGS / "nano.yaml"), "--model.loss.cutoffs", "[0.05, 0.1]")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_record(config)))
    assert parse_settings(PretrainConfig, "test", ["--config", str(file)]) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.warmup_step", "1"], "unknown setting 'optim.warmup_step'; did you mean 'optim.warmup'?"),
        (["--optim.lr", "fast"], 'Parser key "optim.lr": Expected a float. Got value: fast'),
        (["--model.decoder.stages", "2"], "model.decoder.stages"),
        (["--data.sources", "[]"], "data.sources is empty; give"),
        (["--data.sources", "[{shard: here}]"], "SourceConfig: Option 'shard' is not accepted"),
        (["--config", "nowhere.yaml"], "nowhere.yaml' (--help lists all settings)"),
        (["--model.masking.ratio", "1.5"], "masking.ratio must lie between 0 and 1, got 1.5"),
        (["--model.encoder.heads", "5"], "encoder.embed_dim 384 is not a multiple of encoder.heads 5"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments: list[str], message: str):
    with pytest.raises(InputError) as caught:
        parsed(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_in_a_file_is_named_with_the_nearest(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {warmup_step: 3}\n")
    with pytest.raises(InputError, match=r"unknown setting 'optim.warmup_step'; did you mean 'optim.warmup'\?"):
        parsed("--config", str(file))


def test_the_program_ends_with_code_2_and_no_traceback(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--optim.lr", "1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_launchers_own_argument_is_accepted():
    assert parsed("--local_rank=3") == parsed()


def test_the_default_model_is_small():
    assert AllianceConfig() == model_config("alliance_small_patch8")
