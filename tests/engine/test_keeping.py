"""Which checkpoints stay: the newest few, and those that are marked; tests/engine/test_mirrors.py has a real run."""

from pathlib import Path

import pytest

from engine.checkpoints import MANIFEST, STAYS, _superseded, tag_of
from engine.estimate import checkpoints_at_once
from engine.runs import RunConfig


def made(folder: Path, steps: dict[int, str]) -> None:
    """Checkpoints by their steps: `+` stays for good, `-` has lost its manifest."""
    for step, kind in steps.items():
        path = folder / tag_of(step)
        path.mkdir(parents=True)
        if kind != "-":
            (path / MANIFEST).write_text("{}")
        if kind == "+":
            (path / STAYS).write_text("")


@pytest.mark.parametrize(
    ("keep", "removed"),
    [(1, [1, 3, 5, 7, 8]), (2, [1, 3, 7, 8]), (3, [1, 3, 7, 8]), (4, [1, 7, 8])],
)
def test_the_newest_stay_and_those_that_are_marked(tmp_path: Path, keep: int, removed: list[int]) -> None:
    """6 is the newest one: 7 and 8 are of a time that a resumed run has left behind, and a mark keeps no damaged one."""
    made(tmp_path, {1: "", 2: "+", 3: "", 4: "+", 5: "", 6: "", 7: "-", 8: "+"})
    found = _superseded(tmp_path, tmp_path / tag_of(6), keep)
    assert [path.name for path in found] == [tag_of(step) for step in removed]


@pytest.mark.parametrize("keep_every", [0, 1, 3, 4, 50])
@pytest.mark.parametrize("save_every", [1, 2, 5, 100])
@pytest.mark.parametrize("keep", [1, 3])
def test_the_disk_of_a_dry_run_is_enough_for_every_moment(keep_every: int, save_every: int, keep: int) -> None:
    """Played step by step; where the newest ones are not those that stay, it is exact."""
    run = RunConfig(dir="x", steps=23, save_every=save_every, keep=keep, keep_every=keep_every)
    there: list[int] = []
    most = 0
    for step in range(1, run.steps + 1):
        stays = keep_every > 0 and step % keep_every == 0
        if step % save_every == 0 or stays or step == run.steps:
            there.append(step)
            most = max(most, len(there))
            there = [each for each in there if each in there[-keep:] or (keep_every > 0 and each % keep_every == 0)]
    told = checkpoints_at_once(run)
    assert most <= told <= most + (keep + 1 if keep_every else 0)
    assert keep_every or told == most
