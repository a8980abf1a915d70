"""Shards: ordinary WebDataset tars with an index, written from scenes and read in a reproducible order."""

from datasets.sampling.faults import BrokenSample, Fault
from datasets.shards.batches import LoaderConfig
from datasets.shards.loader import Batch, ShardLoader, SourceConfig
from datasets.shards.read import ShardSource

__all__ = ["Batch", "BrokenSample", "Fault", "LoaderConfig", "ShardLoader", "ShardSource", "SourceConfig"]
