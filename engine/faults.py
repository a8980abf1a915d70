"""Samples that could not be used: counted by cause over all ranks, named at first sight, then now and then."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from datasets.sampling.faults import Fault
from engine.errors import AgreedError
from engine.log import logger

EVERY = 60.0  # seconds between two reports, unless a new cause appears
JUDGED = 1000  # samples; of fewer read, the limit is that of so many
NAMED = 3  # samples in a report
HARMLESS = ("empty",)  # a window of a good file may lie in its nodata border


class FaultLog:
    """The faults of a run, the same on every rank."""

    def __init__(self, limit: float, write: Callable[..., None]) -> None:
        """
        Args:
            limit: largest share of broken samples among those read.
            write: takes the record of a report, on the main rank.
        """
        self.limit, self.write = limit, write
        self.total: Counter[str] = Counter()
        self._new: list[Fault] = []
        self._reported = 0.0

    def add(self, faults: Iterable[Fault], *, step: int, read: int) -> None:
        """Count the faults of all ranks in one step.

        Args:
            read: samples that the run has read so far.
        Raises:
            AgreedError: more of them are broken than the limit allows.
        """
        faults = list(faults)
        unseen = {fault.cause for fault in faults} - set(self.total)
        self.total.update(fault.cause for fault in faults)
        self._new += faults
        broken = sum(count for cause, count in self.total.items() if cause not in HARMLESS)
        over = broken > self.limit * max(read, JUDGED)
        if self._new and (unseen or over or time.monotonic() - self._reported > EVERY):
            self.report(step)
        if over:
            raise AgreedError(
                f"step {step}: {broken} of {read} samples are broken ({self._counts(self.total)}), more than the share "
                f"data.max_broken {self.limit:g} allows, such as {faults[0]}; mend the data or raise the limit"
            )

    def report(self, step: int) -> None:
        """Say and record what was found since the last report."""
        if not self._new:
            return
        causes = Counter(fault.cause for fault in self._new)
        named = [str(fault) for fault in dict.fromkeys(self._new)][:NAMED]
        logger.warning(
            "step %d: %d samples left out (%s), such as %s", step, len(self._new), self._counts(causes), named[0]
        )
        self.write(event="skipped", step=step, causes=dict(causes), total=dict(self.total), samples=named)
        self._new.clear()
        self._reported = time.monotonic()

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: broken samples so far, by kind."""
        return dict(self.total)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on counting from `state_dict`."""
        self.total = Counter(state)

    @staticmethod
    def _counts(causes: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {cause}" for cause, count in sorted(causes.items()))
