"""Addresses of files that lie elsewhere, as they are written in settings."""

import os

from alliance.errors import InputError
from alliance.passwords import REFERENCE

TIMEOUT = 60.0  # seconds that a download may stall
PATIENCE = 600.0  # seconds that a store may be away
SCHEMES = ("s3", "gs", "az", "abfss", "http", "https")


def is_store(place: str) -> bool:
    """Whether a place is a folder in object storage or on a web server."""
    scheme, found, _ = place.partition("://")
    return bool(found) and scheme in SCHEMES


def filled_in(place: str) -> str:
    """A place with what the environment holds for every `${NAME}`; in a command its shell does that.

    Raises:
        InputError: it holds nothing for one.
    """
    if place.startswith("pipe:"):
        return place
    missing = [name for name in REFERENCE.findall(place) if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"{place}: the environment variable {missing[0]} is not set; export it on every machine of the run"
        )
    return REFERENCE.sub(lambda found: os.environ[found[1]], place)
