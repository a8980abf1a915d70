"""Samples that cannot be used."""

from typing import Literal, NamedTuple

Cause = Literal[
    "shard",  # cannot be opened or read: vanished, no permission, a failing disk
    "truncated",  # ends before the sample does
    "checksum",  # holds other bytes than were indexed
    "index",  # the shard's sidecar is missing, damaged, or of other samples
    "member",  # has no array of this sensor
    "array",  # has an array of another shape or dtype
    "pair",  # of images and labels cannot be read, or its files do not fit each other
    "empty",  # has no pixel with a value: NaN, infinite or nodata everywhere
]


class Fault(NamedTuple):
    """What is wrong with one sample."""

    cause: Cause
    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}: {self.reason}"


class BrokenSample(Exception):
    """A sample, or none of a batch, can be read; its arguments are the faults."""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is broken."""
        return self.args

    def __str__(self) -> str:
        return str(self.args[0])
