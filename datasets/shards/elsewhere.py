"""Shards written by the workers of a cluster: each sees first that it has the command's scenes and folder before it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from alliance.errors import InputError
from alliance.files import scratch_file
from datasets.cluster import Cluster, refuse_unseen, stamped
from datasets.contents import Stamp
from datasets.imagery.scenes import Scene
from datasets.shards.index import NAME
from datasets.shards.plan import Footprint, Job

SETTLED = 60.0  # seconds until what another machine wrote is seen, where directories are cached (NFS)


class Work(Protocol):
    """What makes a shard; `confirm` is called before anything gets its name."""

    def __call__(self, job: Job, *, confirm: Callable[[], None]) -> None: ...


class Order(NamedTuple):
    """A shard for a worker to make, and the files that it reads, as the command sees them."""

    job: Job
    files: dict[Path, Stamp]

    def __str__(self) -> str:
        return self.job.path.name


def done_elsewhere(jobs: Sequence[Job], work: Work, cluster: Cluster) -> Iterator[Job]:
    """Let the workers make shards of one folder; each as it is done.

    Raises:
        InputError: a worker does not see the scenes or the folder, or cannot make a shard.
    """
    if not jobs:
        return
    with scratch_file(jobs[0].path.absolute().with_name(NAME)) as marker:  # is there as long as this command runs
        orders = map(_order, jobs)
        for order, _ in cluster.run(partial(carry_out, work=work, marker=marker), orders):
            yield order.job


def carry_out(order: Order, *, work: Work, marker: Path) -> None:
    """Make a shard on a worker.

    Raises:
        InputError: this machine does not see the command's scenes or folder, or the command has ended.
    """
    _confirm(marker)
    refuse_unseen(order.files)
    work(order.job, confirm=partial(_confirm, marker))


def await_files(done: Callable[[Job], bool], jobs: Sequence[Job]) -> None:
    """Wait until this machine sees what the workers wrote, or a minute has passed."""
    until = time.monotonic() + SETTLED
    while (undone := [job for job in jobs if not done(job)]) and time.monotonic() < until:
        list(undone[0].path.parent.iterdir())  # makes a network's file system look anew
        time.sleep(0.5)


def _confirm(marker: Path) -> None:
    if not marker.is_file():
        raise InputError(
            f"{marker.parent} is not the folder that the command writes into, or the command has ended; all workers need the "
            f"same folder under the same path"
        )


def _order(job: Job) -> Order:
    """With absolute paths: workers run in folders of their own."""
    places = {id(piece.footprint): _absolute(piece.footprint) for piece in job.pieces}
    pieces = tuple(replace(piece, footprint=places[id(piece.footprint)]) for piece in job.pieces)
    files = [file for place in places.values() for layer in place.layers for file in layer.scene.files]
    return Order(replace(job, path=job.path.absolute(), pieces=pieces), stamped(files))


def _absolute(footprint: Footprint) -> Footprint:
    layers = (replace(layer, scene=_moved(layer.scene)) for layer in footprint.layers)
    return replace(footprint, layers=tuple(layers))


def _moved(scene: Scene) -> Scene:
    return replace(scene, root=scene.root.absolute(), files=tuple(file.absolute() for file in scene.files))
