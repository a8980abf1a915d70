"""Files that are there whole or not at all."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old or the new one, never half of it, also after a power cut."""
    part = path.with_name(path.name + ".tmp")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
