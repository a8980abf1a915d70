"""Which chips serve for what: drawn, given, few, and copies in two parts."""

from collections import Counter
from pathlib import Path

import pytest

from alliance.errors import InputError
from datasets.chips.chip import Chip
from datasets.chips.splits import choose_few, copies_of, draw_splits, refuse_shared, shared_chips


def chips(folder: Path, counts: dict[str, int]) -> list[Chip]:
    """Chips with files of different bytes; a key a;b gives both labels."""
    made = []
    for labels, count in counts.items():
        for number in range(count):
            path = folder / f"{labels.replace(';', '_')}_{number:03d}.tif"
            path.write_text(path.name)
            made.append(Chip(path.name, (path,), tuple(filter(None, labels.split(";")))))
    return made


def by_class(found: list[Chip]) -> Counter[str]:
    return Counter(label for chip in found for label in chip.labels)


def test_every_class_is_dealt_out_by_the_shares_and_each_chip_once(tmp_path: Path) -> None:
    made = chips(tmp_path, {"a": 10, "b": 20, "c": 5})
    parts = draw_splits(made, (0.6, 0.2, 0.2), 0)
    assert {name: dict(by_class(own)) for name, own in parts.items()} == {
        "train": {"a": 6, "b": 12, "c": 3},
        "validation": {"a": 2, "b": 4, "c": 1},
        "test": {"a": 2, "b": 4, "c": 1},
    }
    assert sorted(chip for own in parts.values() for chip in own) == sorted(made)


def test_what_rounding_keeps_from_a_part_in_small_classes_it_gets_in_others(tmp_path: Path) -> None:
    """Twenty classes of one image each: no class can be dealt out, all together can."""
    parts = draw_splits(chips(tmp_path, {f"c{number:02d}": 1 for number in range(20)}), (0.6, 0.2, 0.2), 0)
    assert {name: len(own) for name, own in parts.items()} == {"train": 12, "validation": 4, "test": 4}


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    made = chips(tmp_path, {"a": 30, "b": 30})
    assert draw_splits(made, (0.5, 0.0, 0.5), 1) == draw_splits(made, (0.5, 0.0, 0.5), 1)
    assert draw_splits(made, (0.5, 0.0, 0.5), 1) != draw_splits(made, (0.5, 0.0, 0.5), 2)
    assert draw_splits(made, (0.5, 0.0, 0.5), 1).keys() == {"train", "test"}


def test_chips_of_several_labels_go_by_the_rarest(tmp_path: Path) -> None:
    parts = draw_splits(chips(tmp_path, {"a": 40, "a;b": 10, "": 10}), (0.5, 0.0, 0.5), 0)
    for own in parts.values():
        assert by_class(own) == {"a": 25, "b": 5} and sum(not chip.labels for chip in own) == 5


def test_copies_of_one_image_stay_in_one_part(tmp_path: Path) -> None:
    made = chips(tmp_path, {"a": 20, "b": 20})
    for chip in made[10:20]:
        chip.files[0].write_bytes(made[int(chip.name[2:5]) - 10].files[0].read_bytes())
    assert copies_of(made) == {number: number - 10 for number in range(10, 20)}
    parts = draw_splits(made, (0.5, 0.2, 0.3), 3)
    assert not [pair for other in ("validation", "test") for pair in shared_chips(parts["train"], parts[other])]
    assert sum(map(len, parts.values())) == 40


def test_given_parts_that_share_an_image_are_refused(tmp_path: Path) -> None:
    made = chips(tmp_path, {"a": 4})
    made[3].files[0].write_bytes(made[0].files[0].read_bytes())
    parts = {"train": made[:2], "test": made[2:]}
    assert shared_chips(parts["train"], parts["test"]) == [("a_000.tif", "a_003.tif")]
    with pytest.raises(InputError) as error:
        refuse_shared(parts, "train", ["test"])
    assert "1 of 2 images of test also stand in train (a_000.tif = a_003.tif)" in str(error.value)
    refuse_shared({"train": made[:2], "test": made[2:3]}, "train", ["test"])


def test_windows_of_one_file_are_no_copies(tmp_path: Path) -> None:
    from datasets.imagery.scenes import Box

    (made,) = chips(tmp_path, {"a": 1})
    windows = [made._replace(parts=Box(0, col, 8, 8)) for col in (0, 8, 0)]
    assert copies_of(windows) == {2: 0}


def test_few_are_a_part_of_more(tmp_path: Path) -> None:
    made = chips(tmp_path, {"a": 30, "b": 10, "a;c": 5})
    for options in ([{"per_class": n} for n in (1, 3, 8)], [{"share": s} for s in (0.1, 0.3, 1.0)]):
        found = [choose_few(made, 4, **each) for each in options]
        assert set(found[0]) < set(found[1]) < set(found[2])
    for count in (1, 3, 8):
        assert {name: min(n, count) for name, n in by_class(choose_few(made, 4, per_class=count)).items()} == {
            "a": count, "b": count, "c": min(count, 5)
        }  # fmt: skip
    assert by_class(choose_few(made, 4, share=0.2)) == {"a": 7, "b": 2, "c": 1}
    assert choose_few(made, 0) == made and choose_few(made, 0, per_class=3) != choose_few(made, 1, per_class=3)


def test_one_label_each_gives_exactly_so_many(tmp_path: Path) -> None:
    made = chips(tmp_path, {"a": 30, "b": 10, "c": 2})
    assert by_class(choose_few(made, 0, per_class=5)) == {"a": 5, "b": 5, "c": 2}
