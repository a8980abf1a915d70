"""Numbers of settings: each field states its range, and what lies outside is refused wherever it comes from."""

import dataclasses
import math
from typing import Any

import pytest

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.ranges import MANY, Range, Ranged, ranged, stated_ranges
from engine.optim import OptimConfig
from engine.settings import parse_settings, settings_parser
from engine.settings_tree import dataclasses_of, fields, find, keys, range_of
from finetune.s2fin.network import S2FinConfig
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.segmentation_config import SegmentConfig
from pretrain.config import PretrainConfig

NEEDED = {
    PretrainConfig: ["--run.dir", "x", "--data.sources", "[{shards: x}]"],
    SegmentConfig: ["--run.dir", "x", "--data.set", "x"],
    ClassifyConfig: ["--run.dir", "x", "--data.set", "augsburg", "--data.path", "x"],
}
TREES = tuple(NEEDED)


def is_number(hint: Any) -> bool:
    text = str(hint)  # names that may also be numbers are no numbers
    return (
        any(word in text for word in ("int", "float")) and "str" not in text and not text.startswith("typing.Literal")
    )


@pytest.mark.parametrize("tree", TREES)
def test_every_number_states_its_range(tree: type) -> None:
    """A new field cannot forget it."""
    for group in set(dataclasses_of(tree)):
        stated = {name for name, _ in stated_ranges(group)}
        numbers = {name for name, hint in fields(group).items() if is_number(hint)} - {"seeds"}
        assert numbers == stated, group
        assert issubclass(group, Ranged) or not stated, group


def outside(stated: Range) -> list[float]:
    below = stated.low if stated.above else stated.low - 1
    above = stated.high if stated.below else stated.high + 1
    return [below, above, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("tree", TREES)
def test_a_number_outside_is_refused_by_its_whole_name(tree: type) -> None:
    named = {name: stated for name in keys(tree) if (stated := range_of(tree, name)) and "pyramid" not in name}
    assert len(named) > 20
    for name, stated in named.items():
        text = repr(outside(stated)[0])
        many = "tuple" in str(find(tree, name))
        with pytest.raises(InputError) as refused:
            parse_settings(tree, "", [*NEEDED[tree], f"--{name}={f'[{text}, {text}]' if many else text}"])
        assert f"{name} is " in str(refused.value) and "\n" not in str(refused.value), refused.value


@pytest.mark.parametrize("tree", TREES)
def test_no_number_outside_stands_in_a_group(tree: type) -> None:
    for group in set(dataclasses_of(tree)):
        for name, stated in stated_ranges(group):
            many = "tuple" in str(fields(group)[name])
            for value in outside(stated):
                assert not stated.holds(value)
                probe = object.__new__(group)
                for field in dataclasses.fields(group):
                    default = field.default if field.default is not dataclasses.MISSING else None
                    object.__setattr__(probe, field.name, default)
                object.__setattr__(probe, name, (value, value) if many else value)
                with pytest.raises(InputError, match=f"{group.__name__}.{name} is "):
                    Ranged.__post_init__(probe)  # pyright: ignore[reportArgumentType]


def test_a_number_in_a_list_is_refused_by_its_class() -> None:
    with pytest.raises(InputError, match=r"SourceConfig\.weight is -1.0; give a number above 0"):
        parse_settings(PretrainConfig, "", ["--run.dir", "x", "--data.sources", "[{shards: x, weight: -1}]"])


@pytest.mark.parametrize("tree", TREES)
def test_help_tells_the_range(tree: type) -> None:
    told = " ".join(settings_parser(tree, "").format_help().split())
    assert "Range: from 1 to 2^31 - 1." in told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(depth=-1), "EncoderConfig.depth is -1; give a whole number from 1 to 1024"),
        (lambda: EncoderConfig(heads=0), "EncoderConfig.heads is 0; give a whole number from 1 to 1024"),
        (lambda: EncoderConfig(depth=2.0), "EncoderConfig.depth is 2.0; give a whole number"),  # pyright: ignore
        (lambda: EncoderConfig(depth="2"), "EncoderConfig.depth is '2'; give a whole number"),  # pyright: ignore
        (lambda: EncoderConfig(depth=True), "EncoderConfig.depth is True; give a whole number"),
        (lambda: OptimConfig(lr=0.0), "OptimConfig.lr is 0.0; give a number above 0 to 1e+06"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "OptimConfig.betas is 1.0; give a number from 0 to below 1"),
        (lambda: S2FinConfig(dropout=math.nan), "S2FinConfig.dropout is nan"),
    ],
)
def test_programs_and_files_are_held_to_it_too(make: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "seeds", ["²", "2-1", str(2**65), "0-1000000000", "1.5", "-1", "0,0", "0x1", "١", [-1], [0, 0], [2**63]]
)
def test_seeds_that_are_none_are_refused(seeds: Any) -> None:
    with pytest.raises(InputError, match="seeds are"):
        parse_settings(ClassifyConfig, "", [*NEEDED[ClassifyConfig], f"--seeds={seeds}"])


def test_the_ends_of_a_range() -> None:
    @dataclasses.dataclass(frozen=True)
    class Share(Ranged):
        share: float = ranged(0.5, 0, 1, above=True)
        count: int | None = ranged(None, 1, MANY)

    assert Share(share=1).share == 1 and Share(count=MANY).count == MANY
    for share in (0, 1 + 1e-9):
        with pytest.raises(InputError, match=r"Share.share is .*; give a number above 0 to 1$"):
            Share(share=share)
    with pytest.raises(InputError, match="from 1 to 2\\^31 - 1"):
        Share(count=MANY + 1)
