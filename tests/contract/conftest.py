"""One rig per implementation of the store, and a server that minds hash slots.

All tests in here that need a server get one node of a cluster, which holds every slot: it answers
as any other, but refuses a command or script whose keys lie in different slots, and a script that
touches a key it did not declare. So that every call in here is a test of the keys, too.
"""

import time
from collections.abc import Iterator
from functools import cache
from hashlib import sha1
from typing import Final

import pytest
import redis as redis_client

from eventing.redis import script
from tests.contract.rig import MemoryRig, RedisRig, Rig
from tests.redis_server import RedisServer, free_port

_CLUSTER_WITHIN_S: Final = 20.0
_as_it_is: Final = script.source


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


@cache
def _strict(name: str) -> str:
    return "#!lua\n" + _as_it_is(name)


@cache
def _strict_digest(name: str) -> str:
    return sha1(_strict(name).encode(), usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def strict_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server looks at what a script touches beyond its KEYS only where the script begins with
    this line (without it, it trusts it as of old).
    """
    monkeypatch.setattr(script, "source", _strict)
    monkeypatch.setattr(script, "_digest", _strict_digest)


@pytest.fixture(params=["memory", "redis"])
def rig(request: pytest.FixtureRequest) -> Rig:
    """The store under test, empty."""
    if request.param == "memory":
        return MemoryRig()
    return RedisRig(request.getfixturevalue("redis"))
