"""What a run knows of its sensors before it starts: pooled statistics, fixed samples, refusals."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from alliance.errors import InputError
from datasets.shards.read import ShardSource
from engine.checkpoints import MANIFEST, _superseded
from engine.training import refuse_another_run
from pretrain.data import fixed_samples, pooled_sensors

SENSOR = "synthetic-sar"


def changed(source: Path, target: Path, **band: float) -> ShardSource:
    """A copy of a shard folder whose index says something else of every band."""
    shutil.copytree(source, target)
    index = json.loads((target / "index.json").read_text())
    for entry in index["sensors"][0]["bands"]:
        entry.update(band)
    (target / "index.json").write_text(json.dumps(index))
    return ShardSource(target)


def test_statistics_of_two_sources_are_those_of_all_pixels(sar_shards: Path, tmp_path: Path):
    one = ShardSource(sar_shards)
    other = ShardSource(shutil.copytree(sar_shards, tmp_path / "other"))
    figures = {"count": [3.0, 3.0], "mean": [2.0, 0.0], "std": [1.0, 0.0]}
    other.index = dataclasses.replace(other.index, statistics={SENSOR: figures})
    one.index = dataclasses.replace(
        one.index, statistics={SENSOR: {"count": [1.0, 1.0], "mean": [6.0, 0.0], "std": [0.0, 2.0]}}
    )
    first, second = pooled_sensors([one, other], [[SENSOR], [SENSOR]])[SENSOR].bands
    # Three values of mean 2 and variance 1 with one of 6: mean 3, variance (3 * (1 + 1) + 9) / 4.
    assert (first.mean, first.std) == pytest.approx((3.0, np.sqrt(15 / 4)))
    assert (second.mean, second.std) == pytest.approx((0.0, 1.0))


def test_one_name_for_two_scales_is_refused(sar_shards: Path, tmp_path: Path):
    other = changed(sar_shards, tmp_path / "other", scale=0.5)
    with pytest.raises(InputError, match="mean different things by sensor synthetic-sar"):
        pooled_sensors([ShardSource(sar_shards), other], [[SENSOR], [SENSOR]])


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (
            {"mean": [0.08, 0.02], "std": [0.05, 0.01], "min": [1e-3, 1e-4], "max": [3.0, 0.9]},
            "without one negative value",
        ),
        (
            {"mean": [-1100.0, -1800.0], "std": [300.0, 300.0], "min": [-4e3, -4e3], "max": [900.0, 10.0]},
            "likely dB x 100",
        ),
        ({"mean": [-40.0, -44.0], "std": [1.0, 1.0], "min": [-50.0, -50.0], "max": [-30.0, -30.0]}, "deviations apart"),
    ],
)
def test_folders_whose_numbers_differ_in_kind_are_not_mixed(
    figures: dict[str, list[float]], said: str, sar_shards: Path, tmp_path: Path
):
    one, other = ShardSource(sar_shards), ShardSource(shutil.copytree(sar_shards, tmp_path / "other"))
    usual = {"mean": [-11.0, -18.0], "std": [2.0, 2.0], "min": [-30.0, -36.0], "max": [4.0, -2.0], "count": [9.0, 9.0]}
    one.index = dataclasses.replace(one.index, statistics={SENSOR: usual})
    other.index = dataclasses.replace(other.index, statistics={SENSOR: usual | figures})
    with pytest.raises(InputError) as refused:
        pooled_sensors([one, other], [[SENSOR], [SENSOR]])
    assert said in str(refused.value)
    assert str(one.folder) in str(refused.value) and str(other.folder) in str(refused.value)
    water = {"mean": [-24.0, -30.0], "std": [1.5, 1.0]}
    other.index = dataclasses.replace(other.index, statistics={SENSOR: usual | water})
    pooled_sensors([one, other], [[SENSOR], [SENSOR]])  # open water beside land is the same kind


def test_numbers_of_another_unit_are_learnt_from_alone_where_they_are_meant(sar_shards: Path):
    one = ShardSource(sar_shards)
    linear = {"mean": [0.08, 0.02], "std": [0.05, 0.01], "min": [1e-3, 1e-4], "max": [3.0, 0.9], "count": [9.0, 9.0]}
    pooled_sensors([one], [[SENSOR]])
    one.index = dataclasses.replace(one.index, statistics={SENSOR: linear})
    with pytest.raises(InputError, match="its synthetic-sar is none: .*without one negative value.*or with --force"):
        pooled_sensors([one], [[SENSOR]])
    one.index = dataclasses.replace(one.index, forced=True)
    assert pooled_sensors([one], [[SENSOR]])[SENSOR].bands[0].mean == pytest.approx(0.08)


def test_fixed_samples_are_the_same_and_cropped_in_the_middle(sar_shards: Path):
    source = ShardSource(sar_shards)
    sensor = source.sensors[SENSOR]
    whole, cropped = (fixed_samples([source], sensor, 3, crop) for crop in (None, 32))
    assert whole.shape == (3, 2, 64, 64)
    assert cropped.equal(whole[..., 16:48, 16:48])
    assert fixed_samples([source], sensor, 3, 65).equal(whole)  # tiles smaller than the crop stay whole


def test_the_first_difference_of_two_runs_is_named():
    saved = {"model": {"decoder": {"depth": 6}}, "shards": ["a"]}
    refuse_another_run(saved, saved)
    with pytest.raises(InputError, match=r"another model.decoder.depth \(6 then, 9 now\)"):
        refuse_another_run(saved, {"model": {"decoder": {"depth": 9}}})
    with pytest.raises(InputError, match="another shards; give the same"):
        refuse_another_run(saved, {"shards": ["b"]})


def test_retention_counts_up_to_the_newest_and_drops_what_a_resume_left_behind(tmp_path: Path):
    for step in (100, 200, 300, 600):
        (tmp_path / f"step_{step:08d}").mkdir()
        (tmp_path / f"step_{step:08d}" / MANIFEST).write_text("{}")
    removed = _superseded(tmp_path, tmp_path / "step_00000300", keep=2)
    assert [path.name for path in removed] == ["step_00000100", "step_00000600"]
