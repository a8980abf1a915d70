"""Numbers of settings: each field states its range, and what lies outside is refused wherever it comes from."""

import dataclasses
import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest

from alliance.encoder import EncoderConfig
from alliance.errors import InputError
from alliance.ranges import MANY, Range, Ranged, ranged, stated_ranges
from alliance.released.parts import Options as ReleasedOptions
from alliance.sensors import Band, Sensor
from alliance.sensors.templates import Template
from datasets.chips.chip import ChipSet
from datasets.imagery.images import ImageSource
from datasets.imagery.labels import LabelSource
from datasets.labelled.description import LabelledSet, Layout
from datasets.labelled.parse import find_set
from datasets.releases.cut import Grid
from datasets.releases.prepare import Options as PrepareOptions
from datasets.shards.batches import LoaderConfig
from datasets.shards.gather import Generated
from datasets.shards.plan import TileOptions
from datasets.synthetic.labelled_scenes import SyntheticOptions
from engine.optim import OptimConfig
from engine.settings import parse_settings, settings_parser
from engine.settings_tree import dataclasses_of, fields, find, keys, range_of
from finetune.mapping.embeddings import EmbeddingOptions
from finetune.mapping.scene import SceneOptions
from finetune.s2fin.network import S2FinConfig
from finetune.studies.modality_gap import GapConfig
from finetune.studies.robustness import RobustnessConfig
from finetune.tasks.change_config import ChangeConfig
from finetune.tasks.chips_config import MultilabelConfig, SceneConfig
from finetune.tasks.classification_config import ClassifyConfig
from finetune.tasks.crossdomain_config import CrossDomainConfig
from finetune.tasks.segmentation_config import SegmentConfig
from pretrain.config import PretrainConfig

NEEDED = {
    PretrainConfig: ["--run.dir", "x", "--data.sources", "[{shards: x}]"],
    SegmentConfig: ["--run.dir", "x", "--data.set", "x"],
    ClassifyConfig: ["--run.dir", "x", "--data.set", "augsburg", "--data.path", "x"],
    SceneConfig: ["--run.dir", "x", "--data.path", "x"],
    MultilabelConfig: ["--run.dir", "x", "--data.path", "x"],
    ChangeConfig: ["--run.dir", "x", "--data.set", "x"],
    CrossDomainConfig: ["--run.dir", "x", "--data.set", "x"],
}
TREES = tuple(NEEDED)
ROOMS = ("alliance", "datasets", "engine", "finetune", "pretrain")
DESCRIPTIONS = (Sensor, Template, LabelledSet, ChipSet)  # what files say of images and labels
MANY_EACH = re.compile(r"tuple|Mapping")
ROOT = Path(__file__).resolve().parents[2]
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if "dataclass" in path.read_text()]
MODULES = [importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts)) for path in FILES]


def is_number(hint: Any) -> bool:
    text = re.sub(r"tuple\[[^]]*\], (?=numpy\.dtype)", "", str(hint))  # of the shape of an array
    # Names that may also be numbers are no numbers.
    return bool(re.search(r"\b(int|float)\b", text)) and "str" not in text and not text.startswith("typing.Literal")


@pytest.mark.parametrize("tree", [*TREES, *DESCRIPTIONS])
def test_every_number_states_its_range(tree: type) -> None:
    """A new field cannot forget it."""
    for group in set(dataclasses_of(tree)):
        stated = {name for name, _ in stated_ranges(group)}
        numbers = {name for name, hint in fields(group).items() if is_number(hint)}
        assert numbers <= stated, group
        assert all("int" in str(fields(group)[name]) or "float" in str(fields(group)[name]) for name in stated)
        assert issubclass(group, Ranged) or not stated, group


INTERNAL = {  # made by programs of what they have read or checked; no user gives their numbers
    "alliance.positions.SpatialCode", "alliance.sensors.catalog.Header",
    "datasets.imagery.cubes.arrays.Stored", "datasets.imagery.cubes.axes.Evidence", "datasets.imagery.cubes.bands.BandFacts",
    "datasets.imagery.cubes.packing.Packing", "datasets.imagery.cubes.scene.CubeOptions",
    "datasets.imagery.cubes.scene._Described", "datasets.imagery.cubes.scene.CubeScene", "datasets.imagery.rasters.RasterScene",
    "datasets.imagery.scenes.Scene", "datasets.labelled.checks.LabelCounts", "datasets.labelled.patches.PatchSet",
    "datasets.labelled.patches.PixelTables", "datasets.labelled.scenes.LabelledScene", "datasets.labelled.survey.Survey",
    "datasets.releases.facts.Release", "datasets.sampling.loader.Dealing", "datasets.sampling.splits.Draw",
    "datasets.shards.foreign.ScanJob", "datasets.shards.gather.Collection", "datasets.shards.index.Sidecar",
    "datasets.shards.index.Index", "datasets.shards.inspection.Look", "datasets.shards.parts.Whole", "datasets.shards.plan.Layer", "datasets.shards.plan.Piece",
    "datasets.shards.repack.RepackJob", "datasets.storage.standins.StandIns", "datasets.storage.store.Traffic", "datasets.synthetic.landscapes.Raster", "engine.build.Batching", "engine.loop.Clock",
    "engine.probe_images.ProbeSet", "finetune.export.graphs.Exportable",
}  # fmt: skip


def test_every_dataclass_with_numbers_states_ranges_or_is_known_to_be_of_no_user() -> None:
    """A new dataclass cannot forget them, in whatever room it stands."""
    found = dict[str, type]()
    for module in MODULES:
        own = [each for each in vars(module).values() if isinstance(each, type) and dataclasses.is_dataclass(each)]
        found |= {f"{each.__module__}.{each.__name__}": each for each in own if each.__module__ == module.__name__}
    assert len(found) > 100 and found.keys() >= INTERNAL
    for name, kind in found.items():
        numbers = {field for field, hint in fields(kind).items() if is_number(hint)}
        forgotten = numbers - {field for field, _ in stated_ranges(kind)}
        assert not forgotten or name in INTERNAL, f"{name} has numbers without a range: {sorted(forgotten)}"
        assert issubclass(kind, Ranged) or not list(stated_ranges(kind)), f"{name} states ranges and is no Ranged"


OPTIONS = (TileOptions, Generated, LoaderConfig, SceneOptions, EmbeddingOptions, GapConfig, RobustnessConfig,
           SyntheticOptions, Grid, PrepareOptions, ReleasedOptions)  # fmt: skip


def test_descriptions_hold_all_that_files_say() -> None:
    found = {each for tree in DESCRIPTIONS for each in dataclasses_of(tree)}
    assert {Band, ImageSource, LabelSource, Layout} < found


def outside(stated: Range) -> list[float]:
    below = stated.low if stated.above else stated.low - max(1, abs(stated.low))
    above = stated.high if stated.below else stated.high + max(1, abs(stated.high))
    return [below, above, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("tree", TREES)
def test_a_number_outside_is_refused_by_its_whole_name(tree: type) -> None:
    tried = {name for other in TREES[: TREES.index(tree)] for name in keys(other)}
    new = [name for name in keys(tree) if name not in tried and "pyramid" not in name]
    named = {name: stated for name in new if (stated := range_of(tree, name))}
    assert len(named) > (20 if not tried else 0) or tree is MultilabelConfig
    for name, stated in named.items():
        text = repr(outside(stated)[0]).replace("inf", ".inf")
        many = re.search("tuple", str(find(tree, name)))
        with pytest.raises(InputError) as refused:
            parse_settings(tree, "", [*NEEDED[tree], f"--{name}={f'[{text}, {text}]' if many else text}"])
        assert f"{name} is " in str(refused.value) and "\n" not in str(refused.value), refused.value


@pytest.mark.parametrize("tree", [*TREES, *DESCRIPTIONS, *OPTIONS])
def test_no_number_outside_stands_in_a_group(tree: type) -> None:
    for group in set(dataclasses_of(tree)):
        ranges = dict(stated_ranges(group))
        for name, stated in ranges.items():
            many = MANY_EACH.search(str(fields(group)[name]))
            for value in outside(stated):
                assert not stated.holds(value)
                probe = object.__new__(group)
                for field in dataclasses.fields(group):
                    made = {} if field.default is dataclasses.MISSING else field.default
                    needed = field.default is field.default_factory is dataclasses.MISSING
                    object.__setattr__(
                        probe, field.name, ranges[field.name].low if needed and field.name in ranges else made
                    )
                held = {"tuple": ((value, value),), "Mapping": {0: value}}[many[0]] if many else value
                object.__setattr__(probe, name, held)
                with pytest.raises(InputError, match=rf"[.: ]{name} is "):
                    Ranged.__post_init__(probe)  # pyright: ignore[reportArgumentType]


def test_a_number_in_a_list_is_refused_by_its_class() -> None:
    with pytest.raises(InputError, match=r"SourceConfig\.weight is -1.0; give a number above 0"):
        parse_settings(PretrainConfig, "", ["--run.dir", "x", "--data.sources", "[{shards: x, weight: -1}]"])


@pytest.mark.parametrize("tree", TREES)
def test_help_tells_the_range(tree: type) -> None:
    told = " ".join(settings_parser(tree, "").format_help().split())
    assert "Range: from 1 to 2^31 - 1." in told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(depth=-1), "EncoderConfig.depth is -1; give a whole number from 1 to 1024"),
        (lambda: EncoderConfig(heads=0), "EncoderConfig.heads is 0; give a whole number from 1 to 1024"),
        (lambda: EncoderConfig(depth=2.0), "EncoderConfig.depth is 2.0; give a whole number"),  # pyright: ignore
        (lambda: EncoderConfig(depth="2"), "EncoderConfig.depth is '2'; give a whole number"),  # pyright: ignore
        (lambda: EncoderConfig(depth=True), "EncoderConfig.depth is True; give a whole number"),
        (lambda: OptimConfig(lr=0.0), "OptimConfig.lr is 0.0; give a number above 0 to 1e+06"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "OptimConfig.betas is 1.0; give a number from 0 to below 1"),
        (lambda: S2FinConfig(dropout=math.nan), "S2FinConfig.dropout is nan"),
    ],
)
def test_programs_and_files_are_held_to_it_too(make: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "seeds", ["²", "2-1", str(2**65), "0-1000000000", "1.5", "-1", "0,0", "0x1", "١", [-1], [0, 0], [2**63]]
)
def test_seeds_that_are_none_are_refused(seeds: Any) -> None:
    with pytest.raises(InputError, match="seeds are"):
        parse_settings(ClassifyConfig, "", [*NEEDED[ClassifyConfig], f"--seeds={seeds}"])


def test_the_ends_of_a_range() -> None:
    @dataclasses.dataclass(frozen=True)
    class Share(Ranged):
        share: float = ranged(0.5, 0, 1, above=True)
        count: int | None = ranged(None, 1, MANY)

    assert Share(share=1).share == 1 and Share(count=MANY).count == MANY
    for share in (0, 1 + 1e-9):
        with pytest.raises(InputError, match=r"Share.share is .*; give a number above 0 to 1$"):
            Share(share=share)
    with pytest.raises(InputError, match="from 1 to 2\\^31 - 1"):
        Share(count=MANY + 1)


SET = "root: .\noptical: {files: o, bands: [1]%s}\nlabel: {files: l%s}\nclasses: [a, b]\nsplits: {all: null}\n"


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        ("scale: 0", "", "optical: scale is 0; give a number from 1e-30 to 1e+30"),
        ("scale: -1", "", "optical: scale is -1; give"),
        ("mean: [.nan]", "", "optical: mean must be finite"),
        ("mean: [1e39]", "", "optical: mean is 1e+39; give"),
        ("std: [0.0]", "", "optical: std is 0.0; give"),
        ("nodata: .inf", "", "optical: nodata must be finite"),
        ("count: 0", "", "optical: count is 0; give a whole number from 1"),
        ("", "band: 0", "label: band is 0; give a whole number from 1"),
        ("", "values: {0: 256}", "label: values is 256; give a whole number from 0 to 255"),
        ("", "ignored: [[0, 0, 300]]", "label: ignored is 300; give a whole number from 0 to 255"),
        ("", "first: 9007199254740994", "label: first is 9007199254740994; give a whole number from"),
    ],
)
def test_numbers_of_a_description_are_held_to_their_ranges(
    image: str, label: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "set.yaml").write_text(SET % (f", {image}" if image else "", f", {label}" if label else ""))
    with pytest.raises(InputError) as refused:
        find_set(tmp_path / "set.yaml")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelSource(values={1: 0.5}), "LabelSource.values is 0.5; give a whole number from 0 to 255"),  # pyright: ignore
        (lambda: LabelSource(values={1.5: 0}), "LabelSource.values is 1.5; give a whole number"),  # pyright: ignore
        (lambda: ImageSource(bands=(1.5,)), "ImageSource.bands is 1.5; give a whole number from 1"),  # pyright: ignore
        (lambda: ImageSource(bands=("²",)), "give `sensor`"),
        (lambda: ImageSource(mean=("a",), std=(1,)), "ImageSource.mean is 'a'; give a number"),  # pyright: ignore
        (lambda: Layout(images={"passive": "a"}, labels="b", origin=2), "Layout.origin is 2; give a whole number from 0"),
        (lambda: LabelledSet(name="s", images={}, classes={"a": (0, 0, 256)}, splits={"all": None}), "colour of class a is [0, 0, 256]"),
        (lambda: Template(name="t", description="t", bands=(9, 3)), "bands must rise"),
    ],
)  # fmt: skip
def test_a_program_is_held_to_the_ranges_of_descriptions(make: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        make()
    assert message in str(refused.value)
