"""Settings: defaults < YAML < command line, every shipped file loads, every mistake is named, no file runs code."""

import argparse
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from alliance.errors import InputError
from alliance.model import SIZES, AllianceConfig, model_config
from engine.settings import parse_settings, settings_parser, to_record
from engine.settings_tree import dataclasses_of, fields
from finetune.tasks.change_config import ChangeConfig
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.segmentation_config import SegmentConfig
from pretrain.config import PretrainConfig
from pretrain.run import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "pretrain"
NEEDED = ["--run.dir", "run", "--data.sources", "[{shards: here}]"]
TREES = [PretrainConfig, SegmentConfig, ClassifyConfig, ChangeConfig, CrossDomainConfig]


def parsed(*arguments: str) -> PretrainConfig:
    return parse_settings(PretrainConfig, "test", [*NEEDED, *arguments])


@pytest.fixture
def written(tmp_path: Path):
    """Writes a file of settings and gives the option that names it."""

    def write(text: str | bytes, name: str = "mine.yaml") -> str:
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"--config={file}"

    return write


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


def test_the_command_line_wins_over_the_file(written):
    config = parsed(written("optim: {lr: 1e-3, batch: 64}\n"), "--optim.lr", "5e-4")
    assert (config.optim.lr, config.optim.batch, config.optim.clip) == (5e-4, 64, 1.0)


def test_a_bare_off_in_a_file_means_off(written):
    assert parsed(written("run: {wandb: off}\n")).run.wandb == "off"


def test_a_group_can_be_given_as_one_mapping():
    assert parsed("--optim", "{lr: 1e-3, betas: [0.8, 0.9]}").optim.betas == (0.8, 0.9)


def test_the_saved_settings_give_the_same_run_again(tmp_path: Path):
    config = parsed("--config", str(CONFIGS / "nano.yaml"), "--model.loss.cutoffs", "[0.05, 0.1]")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(to_record(config)))
    assert parse_settings(PretrainConfig, "test", ["--config", str(file)]) == config


def test_the_printed_settings_give_the_same_run_again(written, capsys: pytest.CaptureFixture[str]):
    arguments = ["--optim.lr", "3e-4", "--model.loss.schedule", "rbf"]
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments, "--print_config")
    assert caught.value.code == 0
    file = written(capsys.readouterr().out)
    assert parse_settings(PretrainConfig, "test", [file]) == parsed(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.warmup_step", "1"], "unknown setting 'optim.warmup_step'; did you mean 'optim.warmup'?"),
        (["--optim.warm", "0.1"], "unknown setting 'optim.warm'; did you mean 'optim.warmup'?"),
        (["--optim.lr", "fast"], 'Parser key "optim.lr": Expected a float. Got value: fast'),
        (["--optim.lr"], "argument --optim.lr: expected one argument"),
        (["--model.decoder.stages", "2"], "model.decoder.stages"),
        (["--data.sources", "[]"], "data.sources is empty; give"),
        (["--data.sources", "[{shard: here}]"], "'data.sources[0].shard'; did you mean 'data.sources[0].shards'?"),
        (["--data.sources", "[{shards: here, weight: x}]"], "Expected a float. Got value: x"),
        (["--config", "nowhere.yaml"], "nowhere.yaml' (--help lists all settings)"),
        (["--config", "x" * 5000], "there is no settings file"),
        (["--model.masking.ratio", "1.5"], "model.masking.ratio is 1.5; give a number above 0 to below 1"),
        (["--model.encoder.heads", "5"], "encoder.embed_dim 384 is not a multiple of encoder.heads 5"),
        (["--model", "small.yaml"], "model is 'small.yaml', a group of settings; give its keys, such as model.encoder"),
        (["--run.seed", "9" * 5000], "run.seed"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments: list[str], message: str):
    with pytest.raises(InputError) as caught:
        parsed(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "class" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {warmup_step: 3}", "unknown setting 'optim.warmup_step'; did you mean 'optim.warmup'?"),
        ("model: {encoder: {patches: 3}}", "unknown setting 'model.encoder.patches'; did you mean 'model.encoder.patch'?"),
        ("model: 3", "model is 3, a group of settings; give its keys"),
        ("optim:", "optim is None, a group of settings; give its keys, such as optim.batch"),
        ("optim: {lr: 1}\noptim: {lr: 2}", "the key 'optim' stands twice"),
        ("[1, 2]", "holds list, not keys with values"),
        ("# nothing", "holds no settings"),
        ("a: [", "not valid YAML"),
        ("run: {dir: 2020-99-99}", "not valid YAML"),
        (b"\xff\xfe\x00optim", "is no UTF-8 text"),
        ("optim: &a {lr: *a}", "*a stands inside or before its own &a"),
        ("a: 1\n" * 300_000, "is larger than 1048576 bytes"),
        ("[" * 100, "or more than 64 levels"),
        ("[" * 5000, "mine.yaml"),  # by us or by the library, as its version is
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_in_one_line(text: str | bytes, message: str, written):
    with pytest.raises(InputError) as caught:
        parsed(written(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("element", ["[{}]", "{{<<: [{}]}}"])
@pytest.mark.timeout(10)
def test_a_file_that_would_grow_without_end_is_refused(element: str, written):
    """Nine levels of nine aliases stand for 9^9 values; as merge keys they grow already while they are read."""
    lines = ["a: &a {x: 1}"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} " + element.format(", ".join([f"*{before}"] * 9)))
    with pytest.raises(InputError, match="with its aliases written out"):
        parsed(written("\n".join(lines)))


@pytest.mark.timeout(10)
def test_a_pipe_or_a_folder_is_no_file_of_settings(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(InputError, match="is no regular file"):
            parsed("--config", str(tmp_path / name))


SPECIFICATION = "{class_path: subprocess.Popen, init_args: {args: [touch, MARKER]}}"


@pytest.mark.parametrize(
    "text",
    [
        f"engine: {{deepspeed: {{x: {SPECIFICATION}}}}}",
        f"engine: {{deepspeed: {{x: [[{SPECIFICATION}]]}}}}",
        f'engine: {{deepspeed: {{x: "{SPECIFICATION}"}}}}',
        'engine: {deepspeed: {x: {"class\\x5fpath": planted.Made}}}',
        "model: {class_path: planted.Made}",
        "model: planted.Made",
        "model: inner.yaml",
        "data: {sources: [{class_path: planted.Made}]}",
        "engine: !!python/object/apply:os.system [touch MARKER]",
    ],
)
@pytest.mark.parametrize("last", [[], ["--print_config"]], ids=["run", "print"])
def test_a_file_of_settings_runs_no_code(text: str, last: list[str], written, tmp_path: Path, monkeypatch):
    """A planted module and a command would leave a marker."""
    marker = tmp_path / "marker"
    (tmp_path / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Made: pass\n")
    written(f"encoder: {SPECIFICATION.replace('MARKER', str(marker))}", "inner.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError):
        parsed(written(text.replace("MARKER", str(marker))), *last)
    assert not marker.exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize(
    "arguments",
    [
        ["--engine.deepspeed", f"{{x: {SPECIFICATION}}}"],
        ["--engine.deepspeed.x.class_path", "planted.Made"],
        ["--engine.deepspeed.class_path=planted.Made"],
        ["--model", "planted.Made"],
        ["--model.class_path", "planted.Made"],
        ["--data.sources+", "{class_path: planted.Made}"],
        ["--data.sources", "planted.Made"],
        ["--data.sources.help=planted.Made"],
    ],
)
def test_an_option_runs_no_code(arguments: list[str], tmp_path: Path, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "planted.py").write_text(f"open({str(marker)!r}, 'w')\nclass Made: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError):
        parsed(*[text.replace("MARKER", str(marker)) for text in arguments])
    assert not marker.exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("optim.weight_decay", "{}"),
        ("optim.min_lr", "{}"),
        ("optim.lr", "{}"),
        ("optim.betas[1]", "[0.9, {}]"),
        ("model.loss.cutoffs[0]", "[{}, 0.1]"),
        ("data.sources[0].weight", "[{{shards: here, weight: {}}}]"),
        ("engine.deepspeed.zero_optimization.sub", "{{zero_optimization: {{sub: {}}}}}"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_by_its_whole_name(name: str, form: str, value: str):
    option = "engine.deepspeed" if name.startswith("engine") else name.partition("[")[0]
    with pytest.raises(InputError) as caught:
        parsed(f"--{option}={form.format(value)}")
    assert str(caught.value).startswith(f"{name} is ")
    assert "give a finite number" in str(caught.value)


@pytest.mark.parametrize("kind", TREES)
def test_help_explains_every_key(kind: type):
    parser = settings_parser(kind, "test")
    explained = {action.dest: action.help for action in parser._actions}
    assert not [name for name, text in explained.items() if not text]
    sentences = {name: text for name, text in explained.items() if text != argparse.SUPPRESS and name != "help"}
    assert not [name for name, text in sentences.items() if len(text.split()) < 2]
    shown = " ".join(parser.format_help().split())
    for text in sentences.values():
        assert " ".join(text.split())[:20] in shown


@pytest.mark.parametrize("kind", TREES)
def test_files_that_help_names_are_there(kind: type):
    text = "".join(settings_parser(kind, "test").format_help().split())
    named = re.findall(r"(?:configs|launch|finetune|docs)/\w+(?:/|\.py|\.md)", text)
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("kind", TREES)
def test_members_of_lists_and_mappings_are_explained_as_well(kind: type):
    """They have no option of their own; `--data.sources.help` and the like show them."""
    for group in dataclasses_of(kind):
        actions = settings_parser(group, None)._actions
        explained = {action.dest: action.help for action in actions}
        assert not [name for name in fields(group) if not explained[name]], group


def test_a_setting_of_any_tree_may_be_a_group_or_nothing():
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        width: int = 3
        """Width."""

    @dataclass(frozen=True, kw_only=True)
    class Tree:
        maybe: Inner | None = None
        """A group, or nothing."""
        free: dict[str, Any] = field(default_factory=dict)
        """Anything."""

    globals().update(Inner=Inner)  # type hints are resolved by name
    assert parse_settings(Tree, None, ["--maybe", "{width: 4}"]).maybe == Inner(width=4)
    assert parse_settings(Tree, None, ["--maybe", "null"]).maybe is None
    assert parse_settings(Tree, None, ["--free", "{a: {b: 1}}"]).free == {"a": {"b": 1}}
    with pytest.raises(InputError, match=r"unknown setting 'maybe.wide'; did you mean 'maybe.width'"):
        parse_settings(Tree, None, ["--maybe", "{wide: 4}"])


def test_the_program_ends_with_code_2_and_no_traceback(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--optim.lr", "1"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_launchers_own_argument_is_accepted():
    assert parsed("--local_rank=3") == parsed()


def test_the_default_model_is_small():
    assert AllianceConfig() == model_config("alliance_small_patch8")
