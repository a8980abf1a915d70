"""Any bytes, and any wrong value in an otherwise good file, give a value or an `InputError`: never another exception."""

import copy
import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alliance.checkpoint import load_encoder, save_encoder
from alliance.encoder import AllianceEncoder, EncoderConfig
from alliance.errors import InputError
from alliance.export_files import CONFIG, SENSORS, read_sensors
from alliance.sensors import Band, Sensor, read_sensor
from alliance.yaml_files import read_yaml
from datasets.imagery.images import describe
from datasets.imagery.scenes import Unreadable
from datasets.labelled.parse import FOLDER, parse_set
from datasets.shards.index import NAME, Index, Sidecar
from datasets.shards.scan import read_header, scan
from engine.checkpoints import LOOP, MANIFEST, read_manifest
from engine.log import read_metrics
from engine.restore import _read_loop
from finetune.model_files import read_inputs, read_record
from finetune.pad.checkpoint import read_config
from finetune.pad.model import PadConfig
from tests.helpers.envi import write_envi
from tests.helpers.shards import write_tiny_shards

EXAMPLES = 100
many = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["1e-4", "nan", "..", "/", "\0", "a.tar", "optical", "\ud800"]),
)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _places(record: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested lists and mappings."""
    yield place
    parts = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    for key, value in parts:
        yield from _places(value, (*place, key))


@st.composite
def mutations(draw: st.DrawFn, good: Any) -> Any:
    """A good record with one or two values replaced, removed or added."""
    record = [copy.deepcopy(good)]
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from([place for place in _places(record) if place]))
        holder: Any = record
        for key in way:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if change == "add" and isinstance(holder[last], dict):
            holder[last][draw(st.text(max_size=4))] = draw(values)
        elif change == "remove" and way:
            del holder[last]
        else:
            holder[last] = draw(values)
    return record[0]


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with a part replaced, repeated, removed, or cut off; or any bytes at all."""
    start = draw(st.integers(0, len(good)))
    stop = draw(st.integers(start, min(len(good), start + 40)))
    anew = draw(st.binary(max_size=12) | st.just(b"") | st.just(good[start:stop] * 2))
    return draw(st.sampled_from([good[:start] + anew + good[stop:], good[:start], anew]))


def check(read: Callable[[], object], *allowed: type[Exception]) -> None:
    """It ends with a value, or with an error that is shown to a user as a line."""
    try:
        read()
    except (InputError, *allowed) as error:
        str(error).encode(errors="surrogateescape")


def dumped(record: Any) -> bytes:
    return json.dumps(record).encode()


SENSOR = Sensor(
    name="two",
    bands=(
        Band(name="red", aliases=("r",), wavelength=650, bandwidth=30, mean=0.1, std=0.2, valid=(0.0, 1.5)),
        Band(name="nir", scale=1e-4, spread=(0.5, 0.25), unit="reflectance"),
    ),
    gsd_m=10,
    nodata=0,
    groups=(("red",), ("nir",)),
    dtypes=("uint16",),
    product="S2",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder with an index, two sidecars and two tars."""
    return write_tiny_shards(tmp_path_factory.mktemp("shards") / "shards", (2, 3))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = AllianceEncoder(EncoderConfig(embed_dim=16, depth=1, heads=2, patch=2), [SENSOR])
    return save_encoder(encoder, tmp_path_factory.mktemp("export") / "encoder")


@many
@given(st.data())
def test_yaml(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    good = b"a: &x [1, {b: 2.5e3}]\nc: *x\nd: 2020-01-02\n? e\n: |\n  text\nf: !!int '3'\n<<: {g: 0o7}\n"
    tokens = st.lists(
        st.sampled_from([b"&a ", b"*a", b"[", b"]", b"{", b"}", b": ", b"- ", b"\n", b"!!", b"? ", b"<<"])
    )
    path.write_bytes(data.draw(damaged(good) | tokens.map(b"".join)))
    check(lambda: read_yaml(path))


@many
@given(st.data())
def test_index(folder: Path, data: st.DataObject) -> None:
    good = (folder / NAME).read_bytes()
    text = data.draw(damaged(good) | mutations(json.loads(good)).map(dumped)).decode(errors="replace")
    check(lambda: Index.parse(text, "index.json"))


@many
@given(st.data())
def test_sidecar(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    source, path = next(folder.glob("*.npz")), tmp_path_factory.getbasetemp() / "fuzz.npz"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(source.read_bytes())))
    else:
        with np.load(source) as stored:
            arrays = {name: stored[name] for name in stored.files}
        name = data.draw(st.sampled_from(sorted(arrays)))
        record = mutations(json.loads(str(arrays["record"]))).map(lambda each: np.array(json.dumps(each)))
        other = st.sampled_from([np.zeros(0), np.array(3), np.ones((2, 2)), np.array(["x", "y"]), np.array([b"x"] * 2)])
        change = data.draw(record.map(lambda each: {"record": each}) | other.map(lambda each: {name: each}))
        np.savez(path, **arrays | change)
    check(lambda: Sidecar.load(path), OSError, ValueError)


@many
@given(st.data())
def test_tar(folder: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    index, path = Index.read(folder), tmp_path_factory.getbasetemp() / "fuzz.tar"
    good = next(folder.glob("*.tar")).read_bytes()
    head = data.draw(st.integers(0, len(good) // 512 - 1)) * 512
    header = data.draw(damaged(good[head : head + 512]))
    path.write_bytes(data.draw(st.sampled_from([good[:head] + header + good[head + 512 :], data.draw(damaged(good))])))
    check(lambda: scan(path, index.sensors, index.shapes), Unreadable)


@pytest.mark.filterwarnings("ignore:Reading .* file required additional header parsing:UserWarning")
@many
@given(st.data())
def test_npy_header(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    buffer, path = io.BytesIO(), tmp_path_factory.getbasetemp() / "fuzz.npy"
    np.save(buffer, np.zeros((2, 3, 4), np.uint16))
    keys = st.fixed_dictionaries({"descr": values, "fortran_order": values, "shape": values})
    texts = (keys.map(repr) | st.text(alphabet="{}()[]'\":,LO<u28\n\\ #", max_size=60)).map(
        lambda text: text.encode("latin-1", "replace")
    )
    framed = texts.map(lambda text: b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    content = data.draw(damaged(buffer.getvalue()) | damaged(buffer.getvalue()[:128]) | framed)
    path.write_bytes(content)
    check(lambda: read_header(io.BytesIO(content), tarfile.TarInfo()), Unreadable)
    check(lambda: describe(path), Unreadable)


@many
@given(st.data())
def test_metrics(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    good = b'{"step": 1, "loss": 0.5}\n{"step": 2, "event": "picture"}\n'
    path.write_bytes(data.draw(damaged(good) | st.lists(values.map(dumped)).map(b"\n".join)))
    check(lambda: read_metrics(path))


@many
@given(st.data())
def test_encoder_config(export: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = export / CONFIG
    copy_ = tmp_path_factory.getbasetemp() / "encoder"
    copy_.mkdir(exist_ok=True)
    for file in export.iterdir():
        (copy_ / file.name).write_bytes(file.read_bytes())
    text = good.read_bytes()
    (copy_ / CONFIG).write_bytes(data.draw(damaged(text) | mutations(json.loads(text)).map(dumped)))
    check(lambda: load_encoder(copy_))


@many
@given(st.data())
def test_sensors(export: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good, path = (export / SENSORS).read_bytes(), tmp_path_factory.getbasetemp() / SENSORS
    record = data.draw(mutations(json.loads(good)))
    path.write_bytes(data.draw(damaged(good) | st.just(dumped(record))))
    check(lambda: read_sensors(path))
    one = path.with_name("fuzz-sensor.yaml")
    if isinstance(record, list) and record:
        one.write_text(yaml.dump(record[0]), errors="replace")
        check(lambda: read_sensor(one))


@cache
def descriptions() -> list[Any]:
    return [read_yaml(path) for path in sorted(FOLDER.glob("*.yaml"))]


@many
@given(st.data())
def test_descriptions_of_labelled_sets(data: st.DataObject) -> None:
    record = data.draw(mutations(data.draw(st.sampled_from(descriptions()))))
    check(lambda: parse_set(record, "fuzz"))


@many
@given(st.data())
def test_envi_headers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.dat"
    more = {"wavelength": "{450, 550}", "wavelength units": "nm", "bbl": "{1, 0}", "reflectance scale factor": 10000}
    write_envi(path, np.ones((2, 3, 4)), **more, data_ignore_value=-1, band_names="{a, b}")
    header = path.with_name(path.name + ".hdr")
    good = header.read_bytes()
    lines = good.decode().splitlines()
    place = data.draw(st.integers(1, len(lines) - 1))
    value = data.draw(
        st.text(max_size=8) | st.integers().map(str) | st.sampled_from(["nan", "{", "{1", "-1", "²", "1e999"])
    )
    lines[place] = f"{lines[place].partition('=')[0]}= {value}"
    header.write_bytes(data.draw(damaged(good) | st.just("\n".join(lines).encode(errors="replace"))))
    check(lambda: describe(path), Unreadable)


IMAGE = {"bands": [1, 2], "dtype": "uint16", "nodata": 0, "mean": [1.0, 2.0], "std": [1.0, 2.0]}
COMPONENTS = {"axes": [[1.0], [0.0]], "offsets": [0.5]}
NETWORK = {
    "format": 2,
    "task": "pad",
    "model": dataclasses.asdict(dataclasses.replace(PadConfig(), size="atto", classes=2, rgb_channels=2)),
    "classes": {"a": [0, 0, 0], "b": [255, 0, 0]},
    "inputs": {"optical": IMAGE | COMPONENTS},
}


@many
@given(st.data())
def test_networks(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    record = json.loads(json.dumps(NETWORK))
    (folder / CONFIG).write_bytes(data.draw(damaged(dumped(record)) | mutations(record).map(dumped)))
    for read in (read_record, read_config, lambda each: read_inputs(each, {"optical": 2}, 2)):
        check(lambda read=read: read(folder))


@many
@given(st.data())
def test_states_of_runs(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    loop = {"step": 3, "steps": 5, "loader": {"step": 3, "consumed": [4]}, "faults": {"a": 1}, "run": {"seed": 0}}
    files = {"a.pt": {"bytes": 3, "sha256": "0" * 64}}
    manifest = {"format": 1, "layout": {"ranks": 1, "zero": 1, "precision": "fp32"}, "files": files}
    (folder / LOOP).write_bytes(data.draw(damaged(dumped(loop)) | mutations(loop).map(dumped)))
    (folder / MANIFEST).write_bytes(data.draw(damaged(dumped(manifest)) | mutations(manifest).map(dumped)))
    check(lambda: _read_loop(folder))
    check(lambda: read_manifest(folder), ValueError)
