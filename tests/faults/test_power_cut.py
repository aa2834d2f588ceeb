"""What a server does with a log that was cut inside a script, which is all or nothing to us.

Redis 7.0 cuts the log at the last whole *command*, not before the script's MULTI; what comes later
is written behind that half, and the next start applies both together. Valkey goes back to before
the MULTI. So docs/reliability.md asks for Valkey, or for BGREWRITEAOF after an unclean start.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.redis_server import VALKEY, RedisServer, debian_redis

_TWO_WRITES = "redis.call('HSET', 'hash', 'a', 1) redis.call('XADD', 'stream', '*', 'x', 1)"
Servers = Callable[..., RedisServer]


def cut_inside_a_script(server: RedisServer) -> None:
    """Run a script of two writes, and cut the power between them."""
    server.start()
    with redis.Redis(port=server.port) as client:
        client.set("before", 1)
        client.eval(_TWO_WRITES, 0)
        client.config_set("appendfsync", "always")
        client.set("written", 1)  # what stands before it is in the file now
        client.delete("written")
    server.kill()
    log = next((server.folder / "appendonlydir").glob("*.incr.aof"))
    content = log.read_bytes()
    log.write_bytes(content[: content.index(b"XADD") + 2])


def keys_after(server: RedisServer, *, is_rewritten: bool = False) -> set[bytes]:
    """What is there after a start, another script and one more start."""
    server.start()
    with redis.Redis(port=server.port) as client:
        if is_rewritten:
            client.bgrewriteaof()
            while client.info("persistence")["aof_rewrite_in_progress"]:
                time.sleep(0.01)
        client.eval("redis.call('SET', 'm', 1) redis.call('SET', 'n', 1)", 0)
    server.kill()
    server.start()
    with redis.Redis(port=server.port) as client:
        return set(client.keys())


@pytest.fixture
def redis7() -> Path:
    found = debian_redis()
    if found is None:
        pytest.skip("redis-server (Debian) is not installed")
    return found


def test_valkey_forgets_half_a_script(redis_server: Servers) -> None:
    server = redis_server(binary=VALKEY, options=["--appendonly", "yes"])
    cut_inside_a_script(server)

    assert keys_after(server) == {b"before", b"m", b"n"}


def test_redis_7_0_applies_half_a_script_at_its_second_start(
    redis_server: Servers, redis7: Path
) -> None:
    server = redis_server(binary=redis7, options=["--appendonly", "yes"])
    cut_inside_a_script(server)

    found = keys_after(server)

    if b"hash" not in found:
        pytest.skip("this Redis goes back to before the MULTI, as it should")
    assert b"stream" not in found


def test_a_rewritten_log_holds_no_half_script(redis_server: Servers, redis7: Path) -> None:
    server = redis_server(binary=redis7, options=["--appendonly", "yes"])
    cut_inside_a_script(server)

    assert keys_after(server, is_rewritten=True) == {b"before", b"m", b"n"}
