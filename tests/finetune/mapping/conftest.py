"""What tests of maps share."""

from collections.abc import Iterator

import pytest

from tests.helpers.object_store import ObjectStore, named_by_the_environment, running_store


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store as a user's environment names it."""
    with running_store() as running, named_by_the_environment(running, monkeypatch) as server:
        yield server
