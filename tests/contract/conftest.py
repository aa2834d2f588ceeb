"""One rig per implementation of the store, and a server that minds hash slots.

All tests in here that need a server get one node of a cluster, which holds every slot: it answers
as any other, but refuses a command or script whose keys lie in different slots, and a script that
touches a key it did not declare. So that every call in here is a test of the keys, too.
"""

import time
from collections.abc import Iterator
from typing import Final

import pytest
import redis as redis_client

from eventing import script
from tests.contract.rig import MemoryRig, RedisRig, Rig
from tests.redis_server import RedisServer, free_port

_CLUSTER_WITHIN_S: Final = 20.0


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a cluster's only node, shared by this room's tests."""
    bus = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server = RedisServer(tmp_path_factory.mktemp("node"), options=["--appendonly", "no", *bus])
    server.start()
    with redis_client.Redis(port=server.port) as node:
        node.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        deadline_s = time.monotonic() + _CLUSTER_WITHIN_S
        while node.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
            assert time.monotonic() < deadline_s, "the node does not take its slots"
            time.sleep(0.05)
    yield server.url
    server.kill()


@pytest.fixture(scope="session", autouse=True)
def strict_scripts() -> Iterator[None]:
    """The server looks at what a script touches beyond its KEYS only where the script begins with
    this line (without it, it trusts it as of old).
    """
    as_they_are = script.source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "source", lambda name: "#!lua\n" + as_they_are(name))
        script._digest.cache_clear()
        yield
    script._digest.cache_clear()


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """The store under test, empty."""
    if request.param == "memory":
        return MemoryRig()
    return RedisRig(request.getfixturevalue("redis"))
