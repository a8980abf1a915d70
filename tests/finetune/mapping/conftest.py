"""What tests of maps share."""

from collections.abc import Iterator

import pytest

from tests.helpers.object_store import ObjectStore


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A store as a user's environment names it."""
    running = ObjectStore().start()
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    yield running
    running.stop()
