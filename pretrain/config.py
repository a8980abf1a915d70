"""The settings tree of a pretraining run. Defaults < YAML (`--config`) < command line (`--optim.lr 1e-3`)."""

from dataclasses import dataclass, field

from alliance.errors import InputError
from alliance.model import AllianceConfig
from alliance.ranges import LARGE, Ranged, ranged
from datasets.shards.loader import SourceConfig
from datasets.storage.places import PATIENCE, TIMEOUT
from engine.build import EngineConfig
from engine.optim import OptimConfig
from engine.runs import RunConfig
from pretrain.probe import ProbeConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig(Ranged):
    """Where samples come from and how they are varied."""

    sources: list[SourceConfig]
    """Sets of shards, a list such as [{shards: FOLDER, weight: 1.0}]; launch/shards.py makes them."""
    crop: int | None = ranged(None, 1, 65536)
    """Side of a random square cut out of every tile, pixels; null: the whole tile."""
    augment: bool = True
    """Random mirrors and quarter turns."""
    workers: int = ranged(1, 0, 1024)
    """Threads per rank that read ahead; 0 reads when a batch is asked for."""
    verify: bool = True
    """Compare every sample with the checksum in its shard's index."""
    allow_pipe: bool = False
    """Whether a source may be a command (pipe:...), which is run; only the command line can say so, no file."""
    timeout: float = ranged(TIMEOUT, 0, 600, above=True)
    """Seconds that a download of shards may stall; it is then tried once more, and its samples count as broken."""
    patience: float = ranged(PATIENCE, 0, 86400)
    """Seconds that a store of shards (s3, gs, az, https) may be away: requests are made again until then; after that the run
    stops, to go on later.
    """
    cache: str = ""
    """Folder on this machine that keeps what was read from stores, shared by its ranks; empty: nothing is kept."""
    cache_gb: float = ranged(100.0, 0, LARGE, above=True)
    """Size of `cache`, 1e9 bytes; what was not used for longest goes first."""
    max_broken: float = ranged(0.05, 0, 1)
    """The run stops when a larger share of the samples read is broken (judged from 1,000 on)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise InputError("data.sources is empty; give [{shards: FOLDER, weight: 1.0}], made by launch/shards.py")


@dataclass(frozen=True, kw_only=True)
class PretrainRunConfig(RunConfig):
    """One pretraining run: where it lives, how long it is, how often it reports, what it exports."""

    export_decoder: bool = False
    """Keep the decoder beside the exported encoder, for a run that goes on from it (`init`)."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that defines a run."""

    run: PretrainRunConfig
    """Where the run lives, how long it is, how often it reports."""
    data: DataConfig
    """What it reads."""
    init: str = ""
    """Encoder to begin with, and its decoder if it has one: a run, export or converted folder, its model.safetensors, or
    an id of the hub. `model.encoder` is then that encoder's. Empty: random weights.
    """
    model: AllianceConfig = field(default_factory=AllianceConfig)
    """What it trains (docs/model.md)."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How it learns (docs/model.md 10)."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Labelled images that its features are tried on while it learns."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """How steps are computed."""
