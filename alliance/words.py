"""Words of messages."""


def counted(count: int, noun: str) -> str:
    """A number and what is counted: "1 shard", "2 shards", "0 shards"."""
    return f"{count} {noun}{'s' * (count != 1)}"
