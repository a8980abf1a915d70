"""What became of the losses of a pretraining run, from its metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from alliance.losses import STAGES


def summarise(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How far each sensor's stage losses fell: means over the first and the last fifth of its logged steps.

    The stages, not the total: the schedule moves the total's weights towards the harder high frequencies.
    """
    steps = [record for record in records if "event" not in record and isinstance(record.get("sensor"), str)]
    lines = []
    for name in dict.fromkeys(record["sensor"] for record in steps):
        own = [record for record in steps if record["sensor"] == name]
        if len(own) == 1:
            lines.append(f"{name}: logged at one step alone, which tells no change; a smaller run.log_every logs more")
            continue
        part = max(len(own) // 5, 1)
        falls = []
        for stage in (stage for stage in STAGES if f"loss_{stage}" in own[0]):
            losses = [record.get(f"loss_{stage}") or 0.0 for record in own]
            first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
            falls.append(f"{stage} {first:.3f} -> {last:.3f} ({last / first - 1:+.0%})" if first else f"{stage} 0")
        lines.append(f"{name}: {', '.join(falls)}; means of the first and last fifth of the logged steps")
    return lines
