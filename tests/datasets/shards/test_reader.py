"""The reader: every sample once per epoch, the same global batches for any layout, exact resume, no stop on damage."""

import itertools
import os
import pickle
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alliance.errors import InputError
from datasets.sampling.faults import BrokenSample
from datasets.sampling.order import SampleOrder
from datasets.sampling.placement import draw_placements
from datasets.shards import Batch, LoaderConfig, ShardLoader, ShardSource, SourceConfig
from datasets.shards.batches import Buffers
from datasets.shards.command import main
from tests.helpers.rasters import write_sentinel2

SENSOR = "sentinel2-l1c"
shard_counts = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of one sensor: 3 scenes of 16 tiles of 16 pixels, in several tars."""
    root = tmp_path_factory.mktemp("one")
    write_sentinel2(root / "in", scenes=3, size=64)
    make(root / "in", "--sensor", SENSOR, "--out", root / "out", "--shard-mb", "0.14")
    return root / "out"


def make(*arguments: object) -> None:
    main([*map(str, arguments), "--tile", "16", "--workers", "1"])


def copy(folder: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def take(loader: ShardLoader, micro_batches: int) -> list[Batch]:
    return list(itertools.islice(loader, micro_batches))


def by_position(batches: list[Batch]) -> dict[tuple[int, int], tuple[str, bytes]]:
    """Key and augmented pixels of every sample, by step and place in the global batch."""
    return {
        (batch.step, int(position)): (key, image.numpy().tobytes())
        for batch in batches
        for position, key, image in zip(batch.positions, batch.keys, batch.stored, strict=True)
    }


@given(shard_counts, st.integers(0, 2**40), st.integers(0, 3), st.integers(1, 5))
def test_every_sample_comes_once_per_epoch(counts: list[int], seed: int, epoch: int, group: int) -> None:
    total = sum(counts)
    places = SampleOrder(counts, seed, group).locate(epoch * total + np.arange(total))
    assert sorted(zip(*places, strict=True)) == [(s, i) for s, count in enumerate(counts) for i in range(count)]


@given(shard_counts, st.lists(st.integers(0, 10_000), min_size=1, max_size=20))
def test_a_place_in_the_stream_does_not_depend_on_what_was_read_before(counts: list[int], asked: list[int]) -> None:
    used, together = SampleOrder(counts, 3, 2), SampleOrder(counts, 3, 2).locate(np.array(asked))
    for position, shard, sample in zip(asked, *together, strict=True):
        assert [array.item() for array in used.locate(np.array([position]))] == [shard, sample]


def test_epochs_and_seeds_differ() -> None:
    positions = np.arange(100)
    order = SampleOrder([20] * 5, seed=1)
    first = np.stack(order.locate(positions))
    assert not np.array_equal(first, np.stack(order.locate(100 + positions)))
    assert not np.array_equal(first, np.stack(SampleOrder([20] * 5, seed=2).locate(positions)))


def test_a_group_of_shards_is_mixed_before_the_next_begins() -> None:
    shards = SampleOrder([50] * 8, seed=0, group=4).locate(np.arange(400)).shard
    assert len(set(shards[:200])) == len(set(shards[200:])) == 4
    assert len(set(shards[:20])) > 2


def test_a_thousand_million_samples_are_found_at_once() -> None:
    order = SampleOrder(np.full(100_000, 10_000), seed=0)
    start = time.perf_counter()
    order.locate(123_456_789_012 + np.arange(4096))
    assert time.perf_counter() - start < 5  # a walk there would take hours


@settings(deadline=None, max_examples=15)
@given(st.sampled_from([(1, 1, 12), (1, 3, 4), (2, 2, 3), (3, 4, 1), (6, 1, 2), (4, 3, 1)]), st.integers(0, 9))
def test_the_global_batch_does_not_depend_on_the_layout(folder: Path, layout: tuple[int, int, int], seed: int) -> None:
    world, accumulation, micro = layout
    straight = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(seed=seed, micro=12))
    expected = by_position(take(straight, 5))
    config = LoaderConfig(seed=seed, micro=micro, accumulation=accumulation)
    ranks = [ShardLoader([SourceConfig(shards=str(folder))], config, rank=r, world=world) for r in range(world)]
    assert by_position([batch for rank in ranks for batch in take(rank, 5 * accumulation)]) == expected


def test_a_resumed_loader_goes_on_as_if_never_stopped(folder: Path, paired: Path) -> None:
    sources = [SourceConfig(shards=str(folder)), SourceConfig(shards=str(paired), weight=2)]
    config = LoaderConfig(seed=4, micro=5, accumulation=2)
    straight = by_position(take(ShardLoader(sources, config), 40))
    first = ShardLoader(sources, config)
    begun = take(first, 2 * 7 + 1)  # in the middle of step 7, which is begun anew
    state = first.state_dict()
    assert state["step"] == 7
    assert sum(state["consumed"]) == 7 * 10
    second = ShardLoader(sources, LoaderConfig(seed=4, micro=10))  # another split of the same global batch
    second.load_state_dict(state)
    assert by_position(begun[:14] + take(second, 20 - 7)) == straight


def test_worker_processes_change_nothing(folder: Path, paired: Path) -> None:
    sources = [SourceConfig(shards=str(folder)), SourceConfig(shards=str(paired))]
    taken = []
    for workers in (0, 1, 2):
        loader = ShardLoader(sources, LoaderConfig(micro=4, accumulation=2, workers=workers))
        state = torch.get_rng_state()
        batches = take(loader, 12)
        assert torch.equal(torch.get_rng_state(), state)
        taken.append((by_position(batches), [batch.sensor for batch in batches], loader.state_dict()))
    assert taken[0] == taken[1] == taken[2]


def test_a_step_has_one_sensor_of_one_source_by_its_weight(folder: Path, paired: Path) -> None:
    sources = [SourceConfig(shards=str(folder)), SourceConfig(shards=str(paired), weight=3)]
    config = LoaderConfig(micro=1, accumulation=2)
    ranks = [take(ShardLoader(sources, config, rank=rank, world=2), 1200) for rank in range(2)]
    seen = [[(batch.source, batch.sensor.name) for batch in batches] for batches in ranks]
    assert seen[0] == seen[1]
    assert seen[0][::2] == seen[0][1::2]
    shares = Counter(seen[0][::2])
    assert shares[0, SENSOR] / 600 == pytest.approx(0.25, abs=0.06)  # more than three standard deviations
    assert shares[1, SENSOR] / 600 == pytest.approx(0.375, abs=0.065)
    assert shares[1, "sentinel1-grd-db"] / 600 == pytest.approx(0.375, abs=0.065)


def test_only_the_wanted_sensors_are_read(paired: Path) -> None:
    loader = ShardLoader([SourceConfig(shards=str(paired), sensors=("sentinel1-grd-db",))], LoaderConfig(micro=2))
    assert {batch.sensor.name for batch in take(loader, 20)} == {"sentinel1-grd-db"}
    with pytest.raises(InputError, match="has no sensor landsat8"):
        ShardLoader([SourceConfig(shards=str(paired), sensors=("landsat8",))], LoaderConfig())


def test_a_batch_may_be_larger_than_its_source(paired: Path) -> None:
    loader = ShardLoader([SourceConfig(shards=str(paired))], LoaderConfig(micro=27))
    (batch,) = take(loader, 1)
    assert set(Counter(batch.keys).values()) == {3}
    assert loader.epoch() == 3


def test_the_keys_of_the_global_batch_are_those_the_ranks_read(folder: Path) -> None:
    config = LoaderConfig(micro=3, accumulation=2)
    ranks = [ShardLoader([SourceConfig(shards=str(folder))], config, rank=rank, world=2) for rank in range(2)]
    read = by_position([batch for rank in ranks for batch in take(rank, 6)])
    assert ranks[0].global_keys(2) == [read[2, position][0] for position in range(12)]
    assert ranks[0].epoch() == 3 * 12 / 48


def test_stored_values_and_statistics_give_standardised_batches(folder: Path) -> None:
    (batch,) = take(ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=48)), 1)
    assert batch.stored.dtype == torch.uint16
    value, valid = batch.sensor.standardise(batch.sensor.to_physical(batch.stored))
    assert valid.all()
    torch.testing.assert_close(value.mean((0, 2, 3)), torch.zeros(13), atol=1e-4, rtol=0)
    torch.testing.assert_close(value.std((0, 2, 3)), torch.ones(13), atol=1e-3, rtol=0)


def test_a_broken_sample_is_replaced_and_named(folder: Path, tmp_path: Path) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    config = LoaderConfig(micro=24, flips=False)
    whole = take(ShardLoader([SourceConfig(shards=str(folder))], config), 2)
    loader = ShardLoader([SourceConfig(shards=str(damaged))], config)
    victim = sorted(damaged.glob("*.tar"))[1]
    os.truncate(victim, victim.stat().st_size // 2)  # after the sizes were checked
    batches = take(loader, 2)
    lost = {fault.key for batch in batches for fault in batch.faults}
    assert lost
    assert all(fault[:2] == ("truncated", victim.name) for batch in batches for fault in batch.faults)
    for good, batch in zip(whole, batches, strict=True):
        replacement = next(key for key in good.keys if key not in lost)
        assert batch.keys == [replacement if key in lost else key for key in good.keys]
        kept = [place for place, key in enumerate(good.keys) if key not in lost]
        assert torch.equal(batch.stored[kept], good.stored[kept])


def test_changed_bytes_are_found_when_asked_for(folder: Path, tmp_path: Path) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    source = ShardSource(damaged)
    whole = source.read(SENSOR, np.zeros(2, int), np.arange(2))
    tar = damaged / source.index.shards[0].name
    content = bytearray(tar.read_bytes())
    place = content.index(whole.stored[1].tobytes())
    content[place] ^= 1
    tar.write_bytes(content)
    source.close()
    assert not source.read(SENSOR, np.zeros(2, int), np.arange(2)).faults
    checked = source.read(SENSOR, np.zeros(2, int), np.arange(2), verify=True)
    assert checked.keys == [whole.keys[0]] * 2
    assert checked.faults[0].cause == "checksum"
    with pytest.raises(BrokenSample, match="crc32"):
        source.read(SENSOR, np.array([0]), np.array([1]), verify=True)


@pytest.mark.parametrize("suffix", [".tar", ".npz"])
def test_a_vanished_shard_does_not_stop_a_rank(folder: Path, tmp_path: Path, suffix: str) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    loader = ShardLoader([SourceConfig(shards=str(damaged))], LoaderConfig(micro=1))
    sorted(damaged.glob(f"*{suffix}"))[0].unlink()
    batches = take(loader, 48)
    assert all(len(batch.keys) == 1 for batch in batches)
    lost = sum(bool(batch.faults) for batch in batches)
    assert lost == ShardSource(folder).counts[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("away")), "no shard folder .*launch/shards.py"),
        (lambda folder: (folder / "index.json").unlink(), "has no index.json; .*launch/shards.py --index"),
        (lambda folder: (folder / "index.json").write_text("{}"), "is damaged"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar is missing"),
        (lambda folder: os.truncate(folder / "shard-000001.tar", 99), "has 99 bytes, not"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, tmp_path: Path, damage, message: str) -> None:
    damage(copy(folder, tmp_path / "damaged"))
    with pytest.raises(InputError, match=message):
        ShardSource(tmp_path / "damaged").check()


def test_missing_shards_are_tolerated_up_to_a_share(folder: Path, tmp_path: Path) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    source = ShardSource(damaged)
    (damaged / source.index.shards[0].name).unlink()
    lost = source.counts[0] / source.samples
    (fault,) = source.check(tolerance=lost)
    assert (fault.cause, fault.shard) == ("shard", source.index.shards[0].name)
    with pytest.raises(InputError, match="is missing"):
        source.check(tolerance=lost * 0.99)


def test_a_state_of_other_sources_is_refused(folder: Path) -> None:
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig())
    with pytest.raises(InputError, match="the checkpoint read 2 sources, data.sources has 1"):
        loader.load_state_dict({"step": 1, "consumed": [3, 4]})


def test_a_source_travels_to_other_processes(folder: Path) -> None:
    source = ShardSource(folder)
    before = source.read(SENSOR, np.array([0, 1]), np.array([0, 0]))
    again = pickle.loads(pickle.dumps(source)).read(SENSOR, np.array([0, 1]), np.array([0, 0]))  # noqa: TID251
    assert again.keys == before.keys


def test_crops_lie_anywhere_in_the_tile(folder: Path) -> None:
    loader = ShardLoader([SourceConfig(shards=str(folder))], LoaderConfig(micro=4, crop=10))
    assert take(loader, 1)[0].stored.shape == (4, 13, 10, 10)
    drawn = draw_placements(0, 0, np.arange(4000), (16, 12), crop=10)
    assert set(Counter(placement.top for placement in drawn)) == set(range(7))
    assert set(Counter(placement.left for placement in drawn)) == set(range(3))
    small = draw_placements(0, 0, np.arange(100), (16, 16), crop=17)
    assert {placement[:4] for placement in small} == {(0, 0, 16, 16)}  # a smaller tile stays whole


def test_placements_are_the_eight_symmetries_of_the_square() -> None:
    image = np.arange(16).reshape(1, 4, 4)
    drawn = draw_placements(0, 7, np.arange(800), (4, 4))
    seen = Counter(placement.apply(image)[0].tobytes() for placement in drawn)
    expected = {np.rot90(each, k, (1, 2)).tobytes() for each in (image, image[..., ::-1]) for k in range(4)}
    assert set(seen) == expected
    assert min(seen.values()) > 60  # of 100 expected


def test_an_oblong_keeps_its_shape_and_its_mask() -> None:
    image = np.arange(24).reshape(1, 4, 6)
    for placement in draw_placements(0, 3, np.arange(50), (4, 6)):
        placed, mask = placement.apply(image, image[0] > 11)
        assert placed.shape == (1, 4, 6)
        np.testing.assert_array_equal(mask, placed[0] > 11)


def test_a_batch_that_cannot_be_read_counts_all_its_samples(folder: Path, tmp_path: Path) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    source = ShardSource(damaged)
    for path in damaged.glob("*.tar"):
        path.unlink()
    with pytest.raises(BrokenSample) as caught:
        source.read(SENSOR, np.zeros(3, int), np.arange(3))
    assert [fault.cause for fault in caught.value.faults] == ["shard"] * 3


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_a_damaged_sidecar_breaks_its_samples_alone(folder: Path, tmp_path: Path, content: bytes) -> None:
    damaged = copy(folder, tmp_path / "damaged")
    sorted(damaged.glob("*.npz"))[0].write_bytes(content)
    samples = ShardSource(damaged).read(SENSOR, np.array([0, 1]), np.array([0, 0]))
    assert [fault.cause for fault in samples.faults] == ["index"]


def test_arrays_of_batches_are_used_again_only_when_nobody_holds_them() -> None:
    buffers = Buffers(2)
    first = torch.from_numpy(buffers((2, 3), np.dtype(np.float32)))
    first.fill_(1)
    second = buffers((2, 3), np.dtype(np.float32))
    second[:] = 2
    assert (first == 1).all()
    place, view = second.ctypes.data, second[0]
    del second
    assert buffers((2, 3), np.dtype(np.float32)).ctypes.data != place  # a view is left
    del view
    free = buffers((2, 3), np.dtype(np.float32))
    assert free.ctypes.data != first.data_ptr()
