"""docs/model.md is the specification: what cites it finds it, and its defaults and sizes are those of the code."""

import dataclasses
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from alliance.model import SIZES, list_models, model_config
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.segmentation_config import SegmentConfig
from pretrain.config import PretrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "model.md").read_text()
CODE = ("alliance", "datasets", "engine", "pretrain", "finetune", "launch", "configs", "benchmarks", "tests")
FILES = [
    path
    for folder in CODE
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".yaml", ".md") and path != Path(__file__)
]
NUMBER = r"\d+(?:\.\d+)?"
CITATION = re.compile(rf"docs/model\.md ({NUMBER}(?:(?:, | and | to ){NUMBER})*)")
OTHER_NUMBERS = re.compile(r"alliance\.md|s2fin\.md|pad\.md|(?<![\w.])[a-g]\.\d{1,2}(?!\d*\w)")
TREES = {"": PretrainConfig, "segment": SegmentConfig, "classify": ClassifyConfig}


def sections() -> list[str]:
    return re.findall(rf"^##+ ({NUMBER})", PAGE, re.M)


def settings_rows() -> list[tuple[str, str, str]]:
    """Tree, name and default of every row about a setting."""
    return re.findall(r"^\| `(?:(\w+): )?([\w.]+)` \| `([^`]*)` \|", PAGE, re.M)


def default_of(tree: type, name: str) -> Any:
    """The value of a setting where nobody gives one."""
    first, *rest = name.split(".")
    field = next(field for field in dataclasses.fields(tree) if field.name == first)
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for key in rest:
        value = getattr(value, key)
    return value


def parsed(text: str) -> Any:
    """A default as the page writes it: YAML, fractions such as 1/8 and numbers such as 1e-4 included."""

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(number, value))
        return float(Fraction(value)) if isinstance(value, str) and re.fullmatch(r"[\d./e+-]+", value) else value

    return number(yaml.safe_load(text))


def test_sections_are_numbered_in_order_without_a_gap():
    found = [[int(part) for part in number.split(".")] for number in sections()]
    assert found == sorted(found)
    assert [number[0] for number in found if len(number) == 1] == list(range(1, found[-1][0] + 1))
    for top in {number[0] for number in found}:
        below = [number[1] for number in found if number[0] == top and len(number) == 2]
        assert below == list(range(1, len(below) + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_citation_names_a_section_and_no_other_text(path: Path):
    text = " ".join(path.read_text().split())
    cited = [number for group in CITATION.findall(text) for number in re.findall(NUMBER, group)]
    assert set(cited) <= set(sections())
    assert not OTHER_NUMBERS.findall(text)


def test_the_networks_cite_their_sections():
    cited = {number for path in FILES for number in CITATION.findall(" ".join(path.read_text().split()))}
    assert {"3.1", "3.2", "3.5", "6", "6.2", "7", "8", "9", "10"} <= cited


@pytest.mark.parametrize(("tree", "name", "default"), settings_rows(), ids=lambda value: value or "pretrain")
def test_defaults_of_the_page_are_those_of_the_code(tree: str, name: str, default: str):
    assert default_of(TREES[tree], name) == parsed(default)


def test_every_setting_of_the_pretraining_model_has_a_row():
    def names(value: Any, prefix: str) -> set[str]:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        groups = [names(inner, f"{prefix}.{name}") for name, inner in fields.items() if dataclasses.is_dataclass(inner)]
        return {f"{prefix}.{name}" for name, inner in fields.items() if not dataclasses.is_dataclass(inner)}.union(
            *groups
        )

    written = {name for tree, name, _ in settings_rows() if not tree}
    assert written == {
        *names(default_of(PretrainConfig, "model"), "model"),
        *names(default_of(PretrainConfig, "optim"), "optim"),
    }


def test_named_sizes_of_the_page_are_those_of_the_code():
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.M)
    assert {name: tuple(map(int, row)) for name, *row in rows} == {
        size: (*SIZES[size], model_config(f"alliance_{size}_patch8").decoder.embed_dim) for size in SIZES
    }
    assert len(list_models()) == 2 * len(rows)
