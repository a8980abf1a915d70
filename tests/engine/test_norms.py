"""Running statistics of batch norms: those of all ranks together, and part of a written network."""

import pytest

from tests.helpers.runs import Ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_running_statistics_are_averaged_over_ranks_and_written(ranks: int) -> None:
    """`tests/helpers/norms_on_ranks.py` compares with numbers set by hand and with torch's formula, at ZeRO stages 0, 1 and 3."""
    ended = Ranks(["-m", "tests.helpers.norms_on_ranks", "0", "1", "3"], ranks).wait()
    assert [code for code, _ in ended] == [0] * ranks, "\n".join(output for _, output in ended)
