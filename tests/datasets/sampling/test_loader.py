"""Samples found by number: every epoch whole, the same global batches for any ranks, passes, threads and points of resume."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sampling.loader import Dealing, IndexedLoader, Place

LAYOUTS = [(12, 1, 1), (3, 4, 1), (3, 2, 2), (4, 1, 3), (1, 4, 3), (1, 1, 12)]  # micro, passes, ranks of a batch of 12


def places(dealing: Dealing, *, count: int, workers: int = 0, seed: int = 0) -> IndexedLoader[Place]:
    """A loader of `count` samples that gives the places themselves."""
    return IndexedLoader([f"key {number}" for number in range(count)], lambda place: place, dealing, seed=seed,
                         workers=workers)  # fmt: skip


def taken(dealing: Dealing, steps: int, **arguments: int) -> dict[tuple[int, int], int]:
    """Sample at each (step, position) that one rank takes."""
    found: dict[tuple[int, int], int] = {}
    for place in itertools.islice(places(dealing, **arguments), steps * dealing.accumulation):
        batch = {(place.step, at): n for at, n in zip(place.positions.tolist(), place.samples.tolist(), strict=True)}
        assert len(place.samples) == dealing.micro and not batch.keys() & found.keys()
        found |= batch
    return found


@given(count=st.integers(1, 15), batch=st.integers(1, 9), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_sample_once_though_batches_span_epochs(count: int, batch: int, seed: int) -> None:
    steps = -(-3 * count // batch)
    found = taken(Dealing(micro=batch), steps, count=count, seed=seed)
    stream = [found[divmod(position, batch)] for position in range(3 * count)]
    for epoch in range(3):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_are_permuted_anew() -> None:
    """Of 20 samples, two permutations are the same by chance once in 20! = 2e18."""
    one, other = (list(taken(Dealing(micro=20), 2, count=20, seed=seed).values()) for seed in (0, 1))
    assert one[:20] != one[20:] and one[:20] != other[:20]


@pytest.mark.parametrize(("micro", "accumulation", "world"), LAYOUTS)
def test_the_ranks_together_take_the_batches_of_one_rank(micro: int, accumulation: int, world: int) -> None:
    whole = taken(Dealing(micro=12), 5, count=17, seed=3)
    parts = [
        taken(Dealing(micro=micro, accumulation=accumulation, rank=rank, world=world), 5, count=17, seed=3)
        for rank in range(world)
    ]
    assert sum(map(len, parts)) == len(whole)
    assert {key: number for part in parts for key, number in part.items()} == whole


@given(
    layout=st.sampled_from(LAYOUTS), other=st.sampled_from(LAYOUTS), passes=st.integers(0, 15),
    workers=st.sampled_from([0, 0, 1, 2]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_stopped_run_goes_on_with_the_rest(
    layout: tuple[int, int, int], other: tuple[int, int, int], passes: int, workers: int
) -> None:
    """Stopped after any pass, also within an epoch or a step, and gone on with on other ranks: whole steps are repeated."""
    done = passes // layout[1]
    straight = taken(Dealing(micro=12), done + 4, count=7, seed=5)
    micro, accumulation, world = layout
    loader = places(Dealing(micro=micro, accumulation=accumulation, world=world), count=7, seed=5, workers=workers)
    assert len(list(itertools.islice(loader, passes))) == passes
    state, rest = loader.state_dict(), {}
    micro, accumulation, world = other
    for rank in range(world):
        dealing = Dealing(micro=micro, accumulation=accumulation, rank=rank, world=world)
        resumed = places(dealing, count=7, seed=5, workers=workers)
        resumed.load_state_dict(state)
        for place in itertools.islice(resumed, 4 * accumulation):
            rest |= {(place.step, at): n for at, n in zip(place.positions, place.samples, strict=True)}
    assert rest == {key: number for key, number in straight.items() if key[0] >= done}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_threads_change_neither_order_nor_place(workers: int) -> None:
    """Every third micro-batch takes longer to make than the ones behind it."""

    def make(place: Place) -> list[int]:
        time.sleep(0.01 * (int(place.positions[0]) % 3 == 0))
        return place.samples.tolist()

    dealing = Dealing(micro=2, accumulation=3)
    loader = IndexedLoader([str(number) for number in range(11)], make, dealing, seed=1, workers=workers)
    expected = taken(dealing, 4, count=11, seed=1)
    assert list(itertools.chain(*itertools.islice(loader, 12))) == list(expected.values())
    assert loader.state_dict() == {"step": 4}  # what was read ahead does not count


def test_the_names_of_a_global_batch_are_those_of_its_samples() -> None:
    loader = places(Dealing(micro=2, accumulation=2, rank=1, world=3), count=5, seed=9)
    found = taken(Dealing(micro=12), 3, count=5, seed=9)
    for step in (2, 0, 1):  # at any time, of any step
        assert loader.global_keys(step) == [f"key {found[step, position]}" for position in range(12)]


def test_epochs_are_counted_in_samples_of_all_ranks() -> None:
    loader = places(Dealing(micro=1, accumulation=2, rank=0, world=3), count=8)
    assert loader.epoch() == 0
    list(itertools.islice(loader, 3))  # a step and a half
    assert loader.epoch() == 6 / 8
    list(itertools.islice(places(loader.dealing, count=8), 4))
    loader.load_state_dict({"step": 4})
    assert loader.epoch() == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_while_making_reaches_whoever_asks_for_that_batch(workers: int) -> None:
    def make(place: Place) -> int:
        if place.step == 3:
            raise ValueError("sample of step 3")
        return place.step

    batches = iter(IndexedLoader(["a", "b"], make, Dealing(micro=1), seed=0, workers=workers))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="sample of step 3"):
        next(batches)


def test_positions_and_samples_are_whole_numbers() -> None:
    place = next(iter(places(Dealing(micro=4), count=3)))
    assert place.positions.dtype == place.samples.dtype == np.int64
