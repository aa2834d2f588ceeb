"""A store of three servers: what the scripts of its pods do at a start, a death, a lost disk and a planned end."""

import shutil
import signal
from collections.abc import Iterator

import pytest
import redis as redis_client

from eventing.process.store_url import parse_store_url
from eventing.redis.connection import connect
from tests.store_pods import HOSTS, StorePods, store_pods, until
from tests.time_limits import STORE_S

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed"),
]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorePods]:
    with store_pods(tmp_path_factory.mktemp("store")) as found:
        for number in range(3):
            found.start(number)
        yield found


@pytest.fixture
def pods(started: StorePods) -> StorePods:
    """In step; which of them is the primary, the tests before this one decided."""
    started.in_step()
    return started


def write(pods: StorePods, key: str) -> None:
    """Write to the primary, and let both replicas confirm it."""
    with pods.server(pods.primary()) as primary:
        primary.set(key, "kept")
        assert primary.wait(2, 20_000) == 2


def read(pods: StorePods, key: str) -> bytes | None:
    with pods.server(pods.primary()) as primary:
        found: bytes | None = primary.get(key)
        return found


def test_the_first_start_makes_the_first_server_the_primary(pods: StorePods) -> None:
    assert [pods.role(number) for number in range(3)] == ["primary", "replica", "replica"]


def test_a_killed_primary_comes_back_as_a_replica_and_nothing_is_lost(pods: StorePods) -> None:
    write(pods, "before")
    killed = pods.primary()
    pods.end(killed)
    until(lambda: pods.primary() != killed)
    with pods.server(pods.primary()) as primary:
        primary.set("between", "kept")
    pods.start(killed)
    pods.in_step()

    assert pods.role(killed) == "replica"
    assert (read(pods, "before"), read(pods, "between")) == (b"kept", b"kept")


def test_a_primary_that_lost_its_disk_waits_until_a_replica_took_over(pods: StorePods) -> None:
    write(pods, "before")
    killed = pods.primary()
    pods.end(killed)
    pods.lose_disk(killed)
    pods.start(killed)  # at once: the sentinels still name it
    pods.in_step()

    assert pods.role(killed) == "replica"
    assert read(pods, "before") == b"kept"


def test_a_planned_end_of_the_primary_hands_over_first(pods: StorePods) -> None:
    write(pods, "before")
    ending = pods.primary()
    assert pods.script(ending, "stop.sh") == 0
    assert pods.primary() != ending
    pods.end(ending, signal.SIGTERM)
    pods.start(ending)
    pods.in_step()
    assert read(pods, "before") == b"kept"


def test_servers_that_all_died_at_once_go_on_as_they_were(pods: StorePods) -> None:
    if (first := pods.primary()) == 0:
        assert pods.script(first, "stop.sh") == 0  # the first server is not the one by default
        pods.in_step()
    write(pods, "before")
    was = pods.primary()
    for number in range(3):
        pods.end(number)
    for number in range(3):
        pods.start(number)
    pods.in_step()
    assert (pods.primary(), read(pods, "before")) == (was, b"kept")


def test_a_server_is_ready_once_it_is_in_step(pods: StorePods) -> None:
    assert [pods.script(number, "ready.sh") for number in range(3)] == [0, 0, 0]
    replica = (pods.role(0) == "primary" and 1) or 0
    pods.end(replica)
    assert pods.script(replica, "ready.sh") != 0
    pods.start(replica)


def test_keda_and_the_scaler_may_ask_who_the_primary_is_and_no_more(pods: StorePods) -> None:
    with pods.sentinel(1, "keda", pods.secret["keda-password"]) as keda:
        assert (
            keda.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "torpor")[0]
            == HOSTS[pods.primary()]
        )
        with pytest.raises(redis_client.exceptions.NoPermissionError):
            keda.execute_command("SENTINEL", "FAILOVER", "torpor")
        with pytest.raises(redis_client.exceptions.NoPermissionError):
            keda.execute_command("SENTINEL", "REMOVE", "torpor")
    with (
        redis_client.Redis(host=HOSTS[1], port=pods.sentinel_port) as stranger,
        pytest.raises(redis_client.exceptions.AuthenticationError),
    ):
        stranger.execute_command("SENTINEL", "PRIMARIES")


@pytest.mark.parametrize("key", ["url", "scaler-url"])
async def test_the_addresses_in_the_secret_reach_the_primary(pods: StorePods, key: str) -> None:
    url = pods.addressed(pods.secret[key])
    assert len(parse_store_url(url).sentinels) == 3
    client = connect(url, timeout_s=STORE_S)
    try:
        assert await client.execute_command("XLEN", "torpor:{requests-thinker}:tickets") == 0
    finally:
        await client.aclose()


def test_a_snapshot_is_restored_as_the_base_of_an_append_only_file(
    pods: StorePods,
) -> None:
    """The steps of docs/operations.md: the file and its manifest on the first disk, the others empty."""
    write(pods, "before")
    assert pods.script(1, "snapshot.sh") == 0
    write(pods, "after")
    for number in range(3):
        pods.end(number)
        pods.lose_disk(number)
    folder = pods.disk(0) / "appendonlydir"
    folder.mkdir(parents=True)
    (pods.folder / "dump.rdb").rename(folder / "appendonly.aof.1.base.rdb")
    (folder / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
    for number in range(3):
        pods.start(number)
    pods.in_step()
    assert (read(pods, "before"), read(pods, "after")) == (b"kept", None)
