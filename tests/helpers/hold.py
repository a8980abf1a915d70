"""A program: runs the text that it is given; `say(...)` in it leaves a line in the file that it is given as well."""

import os
import sys
from pathlib import Path


def say(*words: object) -> None:
    """Leave a line, whole."""
    path = Path(sys.argv[2])
    path.with_suffix(".part").write_text(" ".join(map(str, words)) + "\n")
    os.replace(path.with_suffix(".part"), path)


if __name__ == "__main__":
    exec(sys.argv[1], {"say": say, "__name__": "held"})
