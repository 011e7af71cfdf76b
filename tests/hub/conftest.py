"""One Hub and one warm process for all tests of this folder; every test has repositories of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub.server import HubServer, serving
from tests.hub.store import User
from tests.hub.warm import Warm

WRITES, READS, OTHER, WRONG = "hf_writesWRITESwrites", "hf_readsREADSreads", "hf_otherOTHERother", "hf_wrongWRONGwrong"
USERS = {
    WRITES: User("me", (("club", "write"), ("library", "read"))),
    READS: User("me", role="read"),
    OTHER: User("other"),
}


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    with serving(USERS) as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer) -> HubServer:
    hub_server.faults.clear()
    hub_server.requests.clear()
    hub_server.store.repositories.clear()
    hub_server.store.objects.clear()  # or what is uploaded would be there already, from another test
    return hub_server


@pytest.fixture(scope="session")
def warm(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    found = Warm(hub_server.url, tmp_path_factory.mktemp("home") / "hub")
    yield found
    found.close()
