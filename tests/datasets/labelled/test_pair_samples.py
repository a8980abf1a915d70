"""Training micro-batches of pairs: standardised, the same for any rank and thread, blank where a file is spoilt."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.labelled.augment import AugmentConfig
from datasets.labelled.tile_samples import TileBatch, TileSamples
from datasets.labelled.tiles import Tiles
from datasets.sampling.loader import Dealing, IndexedLoader, Place
from datasets.synthetic.pair_trees import write_plain
from datasets.synthetic.pairs import SyntheticPair, make_pair
from finetune.pad.losses import LossConfig, composite_loss
from finetune.pad.model import Pad, PadConfig
from tests.helpers.pad_networks import OPTICAL, SAR, write_tiles

COUNT, SIDE = 6, 40
AS_STORED = AugmentConfig(resize=(1, 1), crop=SIDE, cat_max_ratio=1, flip=0)
USUAL = AugmentConfig(crop=32)


def made(number: int) -> SyntheticPair:
    return make_pair(SIDE, SIDE, 4, np.random.default_rng(number))


@pytest.fixture
def tiles(tmp_path: Path) -> Tiles:
    return write_tiles(tmp_path, [made(number) for number in range(COUNT)], 4)


def place(*samples: int, step: int = 7) -> Place:
    return Place(step, np.arange(len(samples)), np.array(samples))


# Values


def test_a_batch_holds_stored_numbers_less_mean_over_deviation(tiles: Tiles) -> None:
    batch = TileSamples(tiles, AS_STORED, seed=0)(place(4, 1))
    assert batch.keys == ["4", "1"] and not batch.faults
    assert (batch.images["optical"].dtype, batch.images["sar"].dtype, batch.label.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )
    for row, stored in enumerate((made(4), made(1))):
        np.testing.assert_allclose(
            batch.images["optical"][row], (stored.optical[:3] - OPTICAL[0]) / OPTICAL[1], atol=1e-6
        )
        np.testing.assert_allclose(batch.images["sar"][row], (stored.sar - SAR[0]) / SAR[1], atol=1e-6)
        np.testing.assert_array_equal(batch.label[row], stored.label)


def test_an_epoch_has_mean_0_and_deviation_1_where_the_statistics_are_the_set_s(tmp_path: Path) -> None:
    stored = [made(number) for number in range(COUNT)]
    pairs = write_tiles(tmp_path, stored, 4).described
    measured = {}
    for role, bands in (("optical", 3), ("sar", 1)):
        pixels = np.concatenate([getattr(pair, role)[:bands].reshape(bands, -1) for pair in stored], axis=1)
        statistics = {"mean": tuple(pixels.mean(axis=1)), "std": tuple(pixels.std(axis=1))}
        measured[role] = replace(pairs.images[role], **statistics)
    tiles = Tiles(pairs.with_images(**measured), "test")
    batch = TileSamples(tiles, AS_STORED, seed=0)(place(*range(COUNT)))
    for image in (batch.images["optical"], batch.images["sar"]):
        assert image.mean(dim=(0, 2, 3)).numpy() == pytest.approx(0, abs=1e-5)
        assert image.std(dim=(0, 2, 3), correction=0).numpy() == pytest.approx(1, abs=1e-5)


def test_what_pads_a_crop_is_0_and_ignored(tiles: Tiles) -> None:
    batch = TileSamples(tiles, AugmentConfig(resize=(0.5, 0.5), crop=32, flip=0), seed=0)(place(2))
    assert (batch.label[0] != 255).sum() == 20 * 20
    for image in (batch.images["optical"], batch.images["sar"]):
        assert not image[..., 20:, :].any() and not image[..., 20:].any()
        assert image[..., 19, :20].any() and image[..., :20, 19].any()


# Any rank, any thread


def columns(batch: TileBatch) -> list[torch.Tensor]:
    return [*batch.images.values(), batch.label]


def samples(tiles: Tiles, dealing: Dealing, workers: int) -> dict[tuple[int, int], tuple[torch.Tensor, ...]]:
    """What stands at each (step, position) of two steps."""
    making, found = TileSamples(tiles, USUAL, seed=3), {}

    def make(at: Place) -> tuple[Place, TileBatch]:
        return at, making(at)

    loader = IndexedLoader(tiles.keys, make, dealing, seed=3, workers=workers)
    for at, batch in itertools.islice(loader, 2 * dealing.accumulation):
        for row, position in enumerate(at.positions.tolist()):
            found[at.step, position] = tuple(column[row] for column in columns(batch))
    return found


@pytest.mark.parametrize(("micro", "accumulation", "world", "workers"), [(2, 2, 1, 0), (1, 2, 2, 1), (2, 1, 2, 2)])
def test_a_sample_is_the_same_on_any_rank_and_in_any_thread(
    tiles: Tiles, micro: int, accumulation: int, world: int, workers: int
) -> None:
    expected = samples(tiles, Dealing(micro=4), workers=0)
    found = {}
    for rank in range(world):
        dealing = Dealing(micro=micro, accumulation=accumulation, rank=rank, world=world)
        found |= samples(tiles, dealing, workers)
    assert found.keys() == expected.keys()
    assert all(one.equal(other) for key in found for one, other in zip(found[key], expected[key], strict=True))


def test_seed_step_and_position_draw_anew(tiles: Tiles) -> None:
    make, other = (TileSamples(tiles, USUAL, seed=seed) for seed in (0, 1))
    first = make(place(0, 0))
    assert first.images["optical"].equal(make(place(0, 0)).images["optical"])
    assert not first.images["optical"][0].equal(first.images["optical"][1])
    assert not first.images["optical"].equal(make(place(0, 0, step=8)).images["optical"])
    assert not first.images["optical"].equal(other(place(0, 0)).images["optical"])


# Spoilt files


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def of_another_size(file: Path) -> None:
    write_plain(file, np.zeros((1, SIDE, SIDE + 1), dtype=np.uint8))


def of_no_class(file: Path) -> None:
    write_plain(file, np.full((1, SIDE, SIDE), 77, dtype=np.uint8))


@pytest.mark.parametrize(
    ("role", "spoil", "reason"),
    [
        ("optical", Path.unlink, "optical/2.tif cannot be read: 2.tif: No such file or directory"),
        ("sar", cut_short, "sar/2.tif cannot be read"),
        ("label", cut_short, "label/2.tif cannot be read"),
        ("sar", of_another_size, "2: sizes in pixels differ: optical 40 x 40, sar 40 x 41, label 40 x 40"),
        ("label", of_no_class, "label/2.tif holds 77, which is no class"),
    ],
    ids=["vanished", "cut short", "labels cut short", "another size", "no class"],
)
def test_a_spoilt_pair_is_blank_named_and_alone(
    tiles: Tiles, role: str, spoil: Callable[[Path], None], reason: str
) -> None:
    """It vanished or was damaged after the run began: zeros once standardised, no labels, the others as they would be."""
    make = TileSamples(tiles, USUAL, seed=0)
    before = make(place(5, 2, 0))
    spoil(tiles.described.root / role / "2.tif")
    batch = make(place(5, 2, 0))
    (fault,) = batch.faults
    assert (fault.cause, fault.shard, fault.key) == ("pair", "test", "2") and reason in fault.reason
    assert batch.keys == ["5", "2", "0"] and not before.faults
    assert not batch.images["optical"][1].any() and not batch.images["sar"][1].any() and (batch.label[1] == 255).all()
    assert before.images["optical"][1].any() and (before.label[1] != 255).any()
    for one, other in zip(columns(before), columns(batch), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert one[[0, 2]].equal(other[[0, 2]])


# The loss of batches without labels


def blank_batch(tiles: Tiles) -> TileBatch:
    for file in (tiles.described.root / "optical").iterdir():
        file.unlink()
    return TileSamples(tiles, USUAL, seed=0)(place(0, 1))


def unlabelled_batch(tiles: Tiles) -> TileBatch:
    batch = TileSamples(tiles, USUAL, seed=0)(place(0, 1))
    return batch._replace(label=torch.full_like(batch.label, 255))


@pytest.mark.parametrize("batch_of", [blank_batch, unlabelled_batch])
def test_a_batch_without_labels_has_no_loss_and_teaches_nothing(
    tiles: Tiles, batch_of: Callable[[Tiles], TileBatch]
) -> None:
    """The cross entropies are 0, not 0 / 0; the amplitude penalty alone, which needs no labels, may teach."""
    batch = batch_of(tiles)
    torch.manual_seed(0)
    model = Pad(PadConfig(size="atto", classes=4, sar_channels=1)).train()
    losses = composite_loss(model(batch.images["optical"], batch.images["sar"]), batch.label, LossConfig(amplitude=0))
    losses.total.backward()
    assert losses.total.item() == losses.segmentation.item() == losses.auxiliary.item() == 0
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is None or not gradient.any() for gradient in gradients.values())
    assert gradients["encoders.rgb.stem.0.weight"] is not None
    weighted = composite_loss(
        model(batch.images["optical"], batch.images["sar"]), batch.label, LossConfig(amplitude=0.1)
    )
    weighted.total.backward()
    assert weighted.total.item() == pytest.approx(0.1 * weighted.amplitude.item())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_blank_pair_leaves_the_loss_of_the_others_as_it_is(tiles: Tiles) -> None:
    """Means are over labelled pixels: with networks that look at single images, a blank pair changes nothing."""
    (tiles.described.root / "sar" / "1.tif").unlink()
    make = TileSamples(tiles, USUAL, seed=0)
    model = Pad(PadConfig(size="atto", classes=4, sar_channels=1)).eval()
    with torch.no_grad():
        one, both = (
            composite_loss(
                model(batch.images["optical"], batch.images["sar"]), batch.label, LossConfig(amplitude=0)
            ).total.item()
            for batch in (make(place(0)), make(place(0, 1)))
        )
    assert both == pytest.approx(one, rel=1e-5)


def test_a_pair_of_one_class_is_taken(tmp_path: Path) -> None:
    """No crop holds two classes: the last one drawn is taken."""
    flat = made(0)._replace(label=np.zeros_like(made(0).label))
    batch = TileSamples(write_tiles(tmp_path, [flat], 2), USUAL, seed=0)(place(0))
    assert not batch.faults and set(batch.label.unique().tolist()) <= {0, 255}


def test_threads_read_images_without_a_place_quietly(tiles: Tiles) -> None:
    """A warning is an error here; the filter that silences rasterio's is one for all threads."""
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(tiles.__getitem__, [number % COUNT for number in range(200)]))
    assert all(pair.images["optical"].equal(read[number % COUNT].images["optical"]) for number, pair in enumerate(read))
