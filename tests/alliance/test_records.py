"""Records read by the type hints of a class: what fits, what is refused, and what the message says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from alliance.errors import InputError
from alliance.json_files import parse_json, read_json
from alliance.records import as_type, from_record
from alliance.sensors import read_sensor
from alliance.yaml_files import read_yaml


class Spot(NamedTuple):
    row: int
    column: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    name: str
    width: float = 1.0
    kind: Literal["a", "b"] = "a"
    spots: tuple[Spot, ...] = ()
    pair: tuple[int, str] | None = None
    shares: Mapping[str, float] = field(default_factory=dict)


def test_values_come_as_their_hints_say() -> None:
    record = {"name": "n", "width": 2, "spots": [{"row": 1}, [2, 3]], "pair": [1, "x"], "shares": {"a": 0.5}}
    expected = Plan(name="n", width=2, spots=(Spot(1), Spot(2, 3)), pair=(1, "x"), shares={"a": 0.5})
    assert from_record(Plan, record, "plan") == expected
    table = as_type(NDArray[np.float64], [[1, 2], [3, 4]], "table")
    assert table.dtype == np.float64 and table.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], r"^plan holds keys and values, got \[\]$"),
        ({}, "'name' is missing"),
        ({"name": "n", "widht": 1}, "plan: unknown key 'widht'; did you mean 'width'"),
        ({"name": "n", None: 1}, "unknown key None"),
        ({"name": 7}, "plan: name must be a text, got 7; put it into quotation marks"),
        ({"name": "n", "width": True}, "plan: width must be a number, got True"),
        ({"name": "n", "width": "2"}, "width must be a number, got '2'; write it without quotation marks"),
        ({"name": "n", "width": float("nan")}, "width must be finite, got nan"),
        ({"name": "n", "width": 10**400}, "width must be finite"),
        ({"name": "n", "kind": "c"}, "plan: kind is 'c', not one of a, b"),
        ({"name": "n", "kind": ["a"]}, "plan: kind is"),
        ({"name": "n", "spots": "ab"}, "plan: spots must be a list, got 'ab'"),
        ({"name": "n", "spots": [{"row": 1.0}]}, "plan: spots: row must be a whole number, got 1.0"),
        ({"name": "n", "spots": [[1, 2, 3]]}, "plan: spots holds keys and values"),
        ({"name": "n", "pair": [1]}, "plan: pair must be 2 values"),
        ({"name": "n", "shares": {"a": None}}, "plan: shares: a must be a number, got None"),
        ({"name": "n", "shares": {1: 1.0}}, "plan: shares must be a text, got 1"),
    ],
)
def test_what_does_not_fit_is_named(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_record(Plan, record, "plan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("NaN", "not finite"),
        ("[1e999]", "not finite"),
        ("-Infinity", "not finite"),
        ("9" * 5000, "no JSON"),
        ('"\\ud800"', "no UTF-8"),
        (b"\xff\xfe\xfa", "cannot be read"),
        ("[" * 100_000, "64 levels"),
        ("[" * 65 + "]" * 65, "64 levels"),
        ("", "no JSON"),
    ],
)
def test_json_that_is_none_of_ours_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_json(text, "it")
    assert parse_json('{"a": [1, 2.5, "\\u00fc"], "b": null}', "it") == {"a": [1, 2.5, "ü"], "b": None}


def test_a_pipe_or_folder_or_device_is_no_json_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="no regular file"):
            read_json(path)
    with pytest.raises(InputError, match="there is no file"):
        read_json(tmp_path / "absent.json")


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1e-4\nb: -2E3\nc: 1.5e2\nd: '1e-4'\ne: 1e-4m\nf: 0x1e4\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": 1e-4, "b": -2000.0, "c": 150.0, "d": "1e-4", "e": "1e-4m", "f": 484}


def test_sensor_files_that_extend_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("extends: loop\nname: loop\n")
    with pytest.raises(InputError, match="extends 'loop', which extends itself in the end"):
        read_sensor(tmp_path / "loop.yaml")
    for number in range(2000):
        (tmp_path / f"s{number}.yaml").write_text(f"extends: s{number + 1}\n")
    (tmp_path / "s2000.yaml").write_text("name: last\nbands: [{name: red}]\n")
    with pytest.raises(InputError, match=r"s0.yaml: more than 16 files"):
        read_sensor(tmp_path / "s0.yaml")
    assert read_sensor(tmp_path / "s1990.yaml").name == "last"
