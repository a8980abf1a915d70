"""The command `launch/shards.py`: from files and folders of imagery to shards."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from alliance.errors import InputError
from alliance.sensors.catalog import sensor_names
from alliance.sensors.templates import template_names
from alliance.words import counted
from datasets.cluster import connected
from datasets.commands import run_body
from datasets.imagery.cubes import CubeOptions
from datasets.imagery.mirror import mirrored
from datasets.imagery.scenes import summarise
from datasets.options import WORKERS, Parser, number_of
from datasets.shards.foreign import index_folder
from datasets.shards.gather import AUTO, GENERATED, Generated, Request, gather
from datasets.shards.guess import COUNTS
from datasets.shards.index import NAME, Index
from datasets.shards.inspection import look_at, show
from datasets.shards.parts import Part, merge_parts, write_part
from datasets.shards.plan import Plan, TileOptions, make_plan
from datasets.shards.repack import repack_folder
from datasets.shards.verify import verify_folder
from datasets.shards.write import write_shards
from datasets.storage.delivery import run_delivered
from datasets.storage.places import is_store

EPILOG = """examples:
  python launch/shards.py scenes/ --sensor sentinel2-l1c --out shards/
  python launch/shards.py sentinel2-l2a=optical/ sentinel1-grd-db=radar/ --out shards/     several sensors per sample
  python launch/shards.py cube.h5 --sensor hsi --name neon --scale 1e-4 --tile 24 --out shards/
  python launch/shards.py --inspect scenes/ --out histograms.png                           nothing else is written
  python launch/shards.py --index foreign/ --sensor rgb-uint8               tars of others with .npy, read in place
  python launch/shards.py --index foreign/ --sensor rgb-uint8 --out shards/ tars of others with .tif, .jpg, ...
  python launch/shards.py --verify shards/                                  whether they are as they were written

An interrupted run goes on where it stopped when the same command is given again.
On several machines: --dask, or --part and --merge; docs/making-shards.md tells how."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake or a full disk is one line on stderr and exit code 2."""
    options = _parser().parse_args(arguments)
    stopped = "stopped; the finished shards are kept: give the same command again to go on"
    run_body(lambda: _deliver(options), stopped=stopped)


def _deliver(options: argparse.Namespace) -> list[str]:
    given = [name for name in ("dask", "part", "overwrite") if getattr(options, name)]
    if given and is_store(options.out or ""):
        raise InputError(
            f"--{given[0]} needs a folder that is seen as one, not {options.out}; make them there, then copy it"
        )
    return run_delivered(options, ["out"], _read_stores, last=[NAME])


def _read_stores(options: argparse.Namespace) -> list[str]:
    """Run with paths in the place of scenes in stores."""
    given = [_named(text) for text in options.scenes]
    stored = [place for _, place in given if is_store(place)]
    if stored and options.dask:
        raise InputError(
            f"--dask needs scenes that all workers see as files, not {stored[0]}; let each machine make a part of the shards "
            f"with --part I/N, or fetch the scenes (aws s3 cp --recursive)"
        )
    with mirrored(stored) as mirror:
        options.scenes = [(sensor or options.sensor, mirror.path(place)) for sensor, place in given]
        return [mirror.told(line) for line in _run(options)]


def _named(text: str) -> tuple[str | None, str]:
    """The sensor and the path of SENSOR=PATH; None: it names no sensor."""
    sensor, equals, path = text.partition("=")
    named = bool(equals) and not Path(text).exists() and ("/" not in sensor or sensor.endswith((".yaml", ".yml")))
    return (sensor, path) if named else (None, text)


def _run(options: argparse.Namespace) -> list[str]:
    _refuse_mixtures(options)
    if options.merge:
        return _merge(options)
    if options.part is not None:
        return _make_part(options)
    if options.verify:
        if options.scenes or options.out or options.index:
            raise InputError("--verify reads one folder of shards; give no scenes, --out or --index beside it")
        return verify_folder(options.verify, workers=options.workers, overwrite=options.overwrite)
    if options.inspect:
        seen = [look_at(request) for request in _requests(options)]
        looks, lines = ([item for found in column for item in found] for column in zip(*seen, strict=True))
        return show(looks, lines, options.out)
    index, plan = _index_foreign(options) if options.index else _make(options)
    return report(index, options.out or options.index, plan)


def _refuse_mixtures(options: argparse.Namespace) -> None:
    """Refuse options of several machines where they mean nothing."""
    given = [name for name in ("dask", "part", "merge") if getattr(options, name) is not None]
    others = [name for name in ("verify", "inspect", "index") if getattr(options, name)]
    if len(given) > 1 or (given and others):
        first, second = (given + others)[:2]
        raise InputError(f"--{first} and --{second} do not go together; give one of them")
    if options.overwrite and (options.part is not None or options.merge):
        raise InputError(
            "--overwrite would remove what other parts have made; empty the folder yourself, then make the parts without it"
        )


def _make_part(options: argparse.Namespace) -> list[str]:
    part = Part.parse(options.part)
    plan = _plan(options)
    made, total = write_part(plan, options.out, part, workers=options.workers)
    lines = [f"part {part}: {made} of {counted(total, 'shard')}, in {options.out}"]
    return [*lines, f"when all parts are done: python launch/shards.py --merge {options.out}"]


def _merge(options: argparse.Namespace) -> list[str]:
    if options.scenes:
        raise InputError("--merge reads the folders of parts alone; give no scenes beside it")
    out = options.out or options.merge[0]
    if options.out is None and len(options.merge) > 1:
        raise InputError("where to? pass --out DIR; with one folder of all parts, --merge DIR alone")
    return report(merge_parts(options.merge, out), out)


def report(index: Index, folder: Path, plan: Plan | None = None) -> list[str]:
    """What was made, in lines."""
    total = sum(shard.bytes for shard in index.shards)
    lines = [
        f"{counted(index.samples, 'sample')} in {counted(len(index.shards), 'shard')}, {total / 1e6:.1f} MB, in {folder}"
    ]
    for name, sensor in index.sensors.items():
        lines.append(f"{name}: tiles {' x '.join(map(str, index.shapes[name]))}")
        figures = index.statistics[name]
        rows = list(zip(sensor.bands, figures["mean"], figures["std"], figures["min"], figures["max"], strict=True))
        lines.append(f"  {'band':<10}{'mean':>12}{'std':>12}{'min':>12}{'max':>12}  {sensor.bands[0].unit}")
        shown = rows if len(rows) <= 16 else rows[:: len(rows) // 8]
        for band, *values in shown:
            lines.append(f"  {band.name:<10}" + "".join(f"{value:>12.5g}" for value in values))
        if len(shown) < len(rows):
            lines.append(f"  ({len(shown)} of {len(rows)} bands shown)")
        constant = [band.name for band, _, std, _, _ in rows if std == 0]
        lines.extend([f"  constant, so of no use to a model: {', '.join(constant)}"] if constant else [])
    lines.extend(_unnamed(plan) if plan else [])
    lines.extend(f"note: {note}" for note in (plan.notes if plan else ()))
    lines.extend(_forced(index, plan))
    lines.extend([f"dropped {counted(index.dropped, 'tile')} with too many missing values"] if index.dropped else [])
    lines.extend(_counted(index, plan))
    lines.extend(f"  {line}" for line in summarise(index.skipped))
    source = f"[{{shards: {folder}, weight: 1.0}}]"
    command = "python launch/pretrain.py --config configs/pretrain/nano.yaml"
    lines.append(f"next: {command} --run.dir runs/{folder.name} --data.sources '{source}'")
    return lines


def _forced(index: Index, plan: Plan | None) -> list[str]:
    """What was taken against the evidence."""
    if not index.forced:
        return []
    lines = summarise(plan.forced) if plan else []
    return ["forced: scenes whose numbers are not what their sensor says", *(f"  {line}" for line in lines)]


def _counted(index: Index, plan: Plan | None) -> list[str]:
    """How many files were found, used and left out."""
    skipped = {entry.file for entry in index.skipped}
    left_out = f"skipped {counted(len(skipped), 'file')}:" if skipped else ""
    if plan is None:
        return [left_out] if skipped else []
    used = {source for each in plan.footprints for layer in each.layers for source in layer.scene.sources} - skipped
    found = len(used) + len(skipped)
    told = f"found {counted(found, 'file')}, used {len(used)}"
    return [f"{told}, {left_out}" if skipped else told]


def _unnamed(plan: Plan) -> list[str]:
    """Which sensors' bands were taken by their order alone."""
    lines = []
    for name, sensor in plan.sensors.items():
        scenes = [layer.scene for each in plan.footprints for layer in each.layers if layer.sensor.name == name]
        count = sum(scene.band_names is None for scene in scenes)
        generated = sensor.description.startswith("generated")
        if count and not generated:
            order = ", ".join(sensor.band_names[:13])
            lines.append(f"note: {count} of {len(scenes)} scenes have no band names; taken in the order {order}")
        if generated and all(band.unit == COUNTS for band in sensor.bands):
            lines.append(f"note: {name} holds {COUNTS}s; where 10000 is a reflectance of 1, pass --scale 1e-4")
        if all(band.wavelength is None and band.modality == "optical" for band in sensor.bands):
            lines.append(f"note: {name} has no wavelengths; give them with --wavelengths FILE or start:stop")
    return lines


def _make(options: argparse.Namespace) -> tuple[Index, Plan]:
    with nullcontext() if options.dask is None else connected(options.dask) as cluster:
        plan = _plan(options)
        index = write_shards(plan, options.out, workers=options.workers, overwrite=options.overwrite, cluster=cluster)
    return index, plan


def _plan(options: argparse.Namespace) -> Plan:
    if not options.scenes:
        raise InputError("no scenes given; see python launch/shards.py --help")
    if options.out is None:
        raise InputError("where to? pass --out DIR")
    stride = options.tile if options.stride is None else options.stride
    tiles = TileOptions(tile=options.tile, stride=stride, max_missing=options.max_missing, shard_mb=options.shard_mb)
    return make_plan([gather(request) for request in _requests(options)], tiles)


def _index_foreign(options: argparse.Namespace) -> tuple[Index, None]:
    if options.scenes:
        raise InputError("--index reads one folder of tars; give no scenes beside it")
    if options.sensor in (AUTO, GENERATED):
        raise InputError(f"--index needs the sensor of the tars: pass --sensor NAME ({', '.join(sensor_names())})")
    how = {"member": options.member, "axes": options.axes, "workers": options.workers, "force": options.force}
    if options.out is None:
        return index_folder(options.index, options.sensor, **how), None
    return repack_folder(options.index, options.sensor, options.out, overwrite=options.overwrite, **how), None


def _requests(options: argparse.Namespace) -> list[Request]:
    """One request per sensor, in the order in which the sensors are named first."""
    paths: dict[str, list[Path]] = {}
    for sensor, path in options.scenes:
        paths.setdefault(sensor, []).append(path)
    cube = CubeOptions(key=options.key, axes=options.axes)
    generated = Generated(
        name=options.name,
        wavelengths=options.wavelengths,
        unit=options.unit,
        scale=options.scale,
        nodata=options.nodata,
    )
    return [
        Request(
            sensor=sensor,
            paths=tuple(group),
            cube=cube,
            generated=generated,
            drop=options.drop,
            force=options.force,
        )
        for sensor, group in paths.items()
    ]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="launch/shards.py",
        description="Cut imagery into tiles and pack them into WebDataset shards with an index and statistics.",
        epilog=f"shipped sensors:\n  {', '.join(sensor_names())}\nimaging spectrometers, whose files give the "
        f"wavelengths:\n  {', '.join(template_names())}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenes", nargs="*", metavar="SCENES", help="files or folders, here or in object "
        "storage (s3://bucket/folder), or SENSOR=PATH for several sensors per sample")  # fmt: skip
    known = f"a shipped sensor, a YAML file, {AUTO} (default: told by all that files say), or {GENERATED} for a cube"
    add("--inspect", action="store_true", help="say what the scenes hold and which sensors fit; --out: a .png of it")
    add("--sensor", default=AUTO, metavar="NAME", help=known)
    add("--out", metavar="DIR", help="folder to write into, here or in object storage (s3://bucket/folder)")
    tiles, cubes = partial(number_of, TileOptions), partial(number_of, Generated)
    add("--tile", type=tiles("tile"), default=96, help="tile side in pixels of the first sensor (default %(default)s)")
    add("--stride", type=tiles("stride"), help="step from tile to tile in pixels (default: the tile)")
    add("--workers", type=WORKERS, default=2, help="processes (default %(default)s)")
    add("--shard-mb", type=tiles("shard_mb"), default=256.0, help="largest shard, MB (default %(default)s)")
    add("--max-missing", type=tiles("max_missing"), default=0.5, help="drop tiles that lack a larger part (default "
        "%(default)s)")  # fmt: skip
    add(
        "--force", action="store_true", help="take scenes whose numbers are not what the sensor says; the index says so"
    )
    add(
        "--drop",
        metavar="BANDS",
        help="bands to leave out: numbers from 1, ranges, names (3-5,9); none: not even bad ones",
    )
    add(
        "--verify",
        type=Path,
        metavar="DIR",
        help="compare the shards in DIR with their checksums; nothing else is read",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the shards that are in --out; with --verify, have damaged ones written anew by the next run",
    )
    _add_several(parser)
    cube = parser.add_argument_group("HDF5, netCDF-4, MATLAB and NumPy files").add_argument
    cube("--key", help="name of the array, or of the group of arrays (default: the only image)")
    cube("--axes", help="order of its axes, such as hwc or chw (default: as the file tells)")
    made = parser.add_argument_group("a sensor for hyperspectral cubes (--sensor hsi)").add_argument
    made("--name", help="its name (default hsi and the band count)")
    made("--wavelengths", metavar="W", help="file with a number per band, or start:stop in nm (default: of the image)")
    made("--unit", help="of the physical values (default reflectance, or digital number where they are none)")
    made("--scale", type=cubes("scale"), default=1.0, help="physical value of a stored 1 (default %(default)s)")
    made("--nodata", type=cubes("nodata"), help="stored value of missing pixels, beside NaN (default: of the image)")
    foreign = parser.add_argument_group("tars made by others").add_argument
    foreign("--index", type=Path, metavar="DIR", help="index the .tar files in DIR; with --out, convert them")
    foreign("--member", metavar="FIELD", help="member that holds the image (default: the only one)")
    return parser


def _add_several(parser: argparse.ArgumentParser) -> None:
    """The options of work on several machines."""
    several = parser.add_argument_group("several machines, which see the same files under the same paths").add_argument
    several(
        "--dask",
        metavar="ADDRESS",
        help="let the workers of a running Dask scheduler make the shards (tcp://HOST:8786)",
    )
    several("--part", metavar="I/N", help="make part I of N alone: shards I, I + N, ... of the same plan, and no index")
    several("--merge", nargs="+", type=Path, metavar="DIR", help="write the index of all parts in DIR; of several, copied "
        "to --out")  # fmt: skip
