"""Random shards, ranks, passes, workers, weights and points of resume: what must hold for all of them."""

import itertools
from collections import Counter
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.shards import Batch, LoaderConfig, ShardLoader, SourceConfig
from tests.helpers.shards import write_tiny_shards


class Layout(NamedTuple):
    """How a global batch is dealt out: micro * accumulation * world."""

    micro: int
    accumulation: int
    world: int

    @property
    def batch(self) -> int:
        return self.micro * self.accumulation * self.world


class Case(NamedTuple):
    sizes: list[tuple[int, ...]]  # of the shards of each source
    weights: list[float]
    before: Layout
    after: Layout
    workers: int
    group: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Several sources, also with empty shards, one tiny shard, or fewer shards than ranks."""
    sizes = draw(
        st.lists(st.tuples(*[st.integers(0, 9)] * draw(st.integers(1, 5))).filter(any), min_size=1, max_size=3)
    )
    weights = [draw(st.floats(0.1, 10)) for _ in sizes]
    batch = draw(st.integers(1, 12))
    layouts = [
        Layout(micro, accumulation, batch // (micro * accumulation))
        for micro, accumulation in itertools.product(range(1, batch + 1), repeat=2)
        if batch % (micro * accumulation) == 0
    ]
    before, after = draw(st.sampled_from(layouts)), draw(st.sampled_from(layouts))
    workers = draw(st.sampled_from([0] * 8 + [1, 2]))
    return Case(sizes, weights, before, after, workers, draw(st.integers(1, 6)), draw(st.integers(0, 2**32)))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def make(sizes: tuple[int, ...]) -> str:
        return str(write_tiny_shards(tmp_path_factory.mktemp("fuzz") / "shards", sizes))

    return make


def loaders(case: Case, layout: Layout, make, workers: int = 0) -> list[ShardLoader]:
    """One loader per rank."""
    sources = [SourceConfig(shards=make(sizes), weight=w) for sizes, w in zip(case.sizes, case.weights, strict=True)]
    config = LoaderConfig(
        seed=case.seed, micro=layout.micro, accumulation=layout.accumulation, workers=workers, shuffle_group=case.group
    )
    return [ShardLoader(sources, config, rank=rank, world=layout.world) for rank in range(layout.world)]


def take(ranks: list[ShardLoader], steps: int) -> list[dict[int, list[str]]]:
    """For each step, its source with the keys of the global batch in order; all ranks must agree on everything."""
    taken: list[list[Batch]] = [
        list(itertools.islice(rank, steps * rank.config.accumulation)) for rank in ranks
    ]  # a rank with fewer batches would end the list early
    assert len({len(batches) for batches in taken}) == 1
    found: list[dict[int, list[str]]] = []
    first = taken[0][0].step
    for step in range(first, first + steps):
        batches = [batch for own in taken for batch in own if batch.step == step]
        (source,) = {batch.source for batch in batches}
        placed = {int(p): key for batch in batches for p, key in zip(batch.positions, batch.keys, strict=True)}
        assert sorted(placed) == list(range(ranks[0].batch))
        found.append({source: [placed[position] for position in sorted(placed)]})
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases(), steps=st.integers(1, 12), resumed=st.integers(0, 12))
def test_every_layout_gives_the_same_samples_once_per_epoch_and_resumes_exactly(
    shards, case: Case, steps: int, resumed: int
) -> None:
    resumed = min(resumed, steps)
    straight = take(loaders(case, case.before, shards), steps)
    begun = loaders(case, case.after, shards, case.workers)
    first = take(begun, resumed) if resumed else []
    states = [rank.state_dict() for rank in begun]
    assert all(state == states[0] for state in states)
    assert len(str(states[0])) < 100  # of a fixed size, whatever the number of samples
    if steps > resumed:
        again = loaders(case, case.before, shards)
        for rank in again:
            rank.load_state_dict(states[0])
        assert first + take(again, steps - resumed) == straight
    for source, sizes in enumerate(case.sizes):
        stream = [key for step in straight for key in step.get(source, [])]
        samples = {f"s{shard}-{number}" for shard, size in enumerate(sizes) for number in range(size)}
        for start in range(0, len(stream), len(samples)):
            epoch = Counter(stream[start : start + len(samples)])
            assert max(epoch.values()) == 1
            assert epoch.keys() <= samples
            if epoch.total() == len(samples):
                assert epoch.keys() == samples
