"""A primary with replicas and three sentinels as child processes, for tests: real ones, behind a proxy for each server,
so that a server can be killed, frozen, or cut off from everything.
"""

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

import redis as redis_client

from tests.faults.proxy import Proxy
from tests.redis_server import VALKEY, RedisServer

SERVICE: Final = "torpor"
SERVERS: Final = 3
SENTINELS: Final = 3
_SCRIPTS: Final = Path(__file__).parents[1] / "knative" / "deploy" / "store"
_IN_STEP_WITHIN_S: Final = 60.0


@dataclass(frozen=True)
class Guard:
    """TLS, and a user with a password of its own at servers and at sentinels; nobody else may do anything."""

    certificate: Path
    password: str = "of-servers@"
    sentinel_password: str = "of-sentinels/"
    user: str = "torpor"

    @property
    def of_server(self) -> dict[str, str]:
        return {"username": self.user, "password": self.password}

    @property
    def of_sentinel(self) -> dict[str, str]:
        return {"username": self.user, "password": self.sentinel_password}

    def of_servers(self) -> tuple[str, ...]:
        """Lines of a server's configuration."""
        return (
            f"masteruser {self.user}",
            f"masterauth {self.password}",
            "user default off",
            f"user {self.user} on >{self.password} ~* &* +@all",
        )

    def of_sentinels(self) -> tuple[str, ...]:
        """Lines of a sentinel's configuration."""
        return (
            f"sentinel auth-user {SERVICE} {self.user}",
            f"sentinel auth-pass {SERVICE} {self.password}",
            f"sentinel sentinel-user {self.user}",
            f"sentinel sentinel-pass {self.sentinel_password}",
            "user default off",
            f"user {self.user} on >{self.sentinel_password} ~* &* +@all",
        )

    def url(self, hosts: str) -> str:
        login = quote(self.password, safe="")
        options = {"sentinel_username": self.user, "sentinel_password": self.sentinel_password}
        options |= {"ssl_ca_certs": str(self.certificate)}
        return f"rediss+sentinel://{self.user}:{login}@{hosts}/{SERVICE}?{urlencode(options)}"


@dataclass(eq=False)
class Node:
    """A server, and the proxy through which everything reaches it."""

    server: RedisServer
    proxy: Proxy


@dataclass(eq=False)
class WatchedStore:
    """The servers and their sentinels."""

    nodes: list[Node]
    sentinels: list[RedisServer]
    guard: Guard | None = None

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        if self.guard:
            return self.guard.url(hosts)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def primary(self) -> Node:
        """As the first sentinel that answers names it."""
        for each in self.sentinels:
            with (
                suppress(redis_client.RedisError),
                each.client(socket_timeout=2) as sentinel,
            ):
                _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                return next(node for node in self.nodes if node.proxy.port == int(port))
        raise AssertionError("no sentinel answers")

    @property
    def replicas(self) -> list[Node]:
        primary = self.primary()
        return [node for node in self.nodes if node is not primary]

    async def moved(self, old: Node, *, within_s: float = 60.0) -> Node:
        """The next primary, once the sentinels name another than `old`."""
        async with asyncio.timeout(within_s):
            while (found := await asyncio.to_thread(self.primary)) is old:
                await asyncio.sleep(0.05)
        return found

    async def in_step(self) -> None:
        """Return once every other server replicates from the primary, and every sentinel knows them."""
        deadline_s = time.monotonic() + _IN_STEP_WITHIN_S
        while not await asyncio.to_thread(self._is_in_step):
            assert time.monotonic() < deadline_s, "the replicas did not connect to the primary"
            await asyncio.sleep(0.05)

    def _is_in_step(self) -> bool:
        primary = self.primary()
        try:
            for node in self.nodes:
                with node.server.client(socket_timeout=1) as server:
                    found = server.info("replication")
                if node is primary:
                    if found["role"] != "master" or found["connected_slaves"] < len(self.nodes) - 1:
                        return False
                elif (
                    found["role"] != "slave"
                    or found["master_link_status"] != "up"
                    or found["master_port"] != primary.proxy.port
                ):
                    return False
            return all(self._is_known_to(each) for each in self.sentinels)
        except redis_client.RedisError:
            return False

    def _is_known_to(self, sentinel: RedisServer) -> bool:
        with sentinel.client(socket_timeout=1) as asked:
            state = asked.sentinel_masters()[SERVICE]
            replicas = asked.sentinel_slaves(SERVICE)
        is_whole = state["num-other-sentinels"] == len(self.sentinels) - 1
        are_up = sum(not each["is_sdown"] for each in replicas) == len(self.nodes) - 1
        return bool(is_whole and are_up and state["flags"] == "master")


@asynccontextmanager
async def watched_store(
    folder: Path, *, binary: Path = VALKEY, servers: int = SERVERS, guard: Guard | None = None
) -> AsyncIterator[WatchedStore]:
    """So many servers, the first of them the primary, and three sentinels, in step."""
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for number in range(servers):
            proxy = await stack.enter_async_context(Proxy(0).serving())
            server = _Server(
                folder / f"server-{number}",
                binary=binary,
                tls=guard.certificate if guard else None,
                login=guard.of_server if guard else None,
            )
            server.lines = _lines(proxy, nodes[0].proxy if nodes else None, guard)
            if servers >= SERVERS:
                server.lines += _deployed("start-server.sh", "min-replicas[a-z-]*")
            proxy.target = server.port
            await asyncio.to_thread(server.start)
            stack.callback(_end, server)
            nodes.append(Node(server, proxy))
        sentinels = []
        for number in range(SENTINELS):
            primary_port = nodes[0].proxy.port
            sentinel = _sentinel(folder / f"sentinel-{number}", binary, primary_port, guard)
            await asyncio.to_thread(sentinel.start)
            stack.callback(_end, sentinel)
            sentinels.append(sentinel)
        store = WatchedStore(nodes, sentinels, guard)
        await store.in_step()
        yield store


def _end(server: RedisServer) -> None:
    if server.exit_code() is None:
        server.kill()


def _deployed(script: str, pattern: str) -> tuple[str, ...]:
    """The lines that a script of the store's pods writes and whose beginning matches."""
    text = (_SCRIPTS / script).read_text()
    found = tuple(re.findall(rf'echo "((?:{pattern}) [^"$]*)"', text))
    assert found, f"{script} writes no {pattern}"
    return found


def _lines(proxy: Proxy, primary: Proxy | None, guard: Guard | None) -> tuple[str, ...]:
    return (
        "bind 127.0.0.1",
        'save ""',
        "appendonly yes",
        "appendfsync everysec",
        "repl-diskless-sync-delay 0",
        *_deployed("start-server.sh", "repl-timeout"),
        "replica-announce-ip 127.0.0.1",
        f"replica-announce-port {proxy.port}",
        *([f"replicaof 127.0.0.1 {primary.port}"] if primary else []),
        *(guard.of_servers() if guard else ()),
    )


class _Server(RedisServer):
    """A server that keeps its configuration in a file. Sentinels write into it who is the primary, so that a primary
    that was killed comes back as one.
    """

    lines: tuple[str, ...] = ()
    mode: tuple[str, ...] = ()

    def launch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.conf"
        if not path.exists():
            listening = [f"{name} {value}" for name, value in self.listening()]
            path.write_text("\n".join([*self.lines, *listening, f"dir {self.folder}", ""]))
        self.launch_with(str(path), *self.mode)


class _Sentinel(_Server):
    mode = ("--sentinel",)


def _sentinel(folder: Path, binary: Path, primary_port: int, guard: Guard | None) -> RedisServer:
    made = _Sentinel(
        folder,
        binary=binary,
        tls=guard.certificate if guard else None,
        login=guard.of_sentinel if guard else None,
    )
    made.lines = (
        "bind 127.0.0.1",
        f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2",
        *_deployed("start-sentinel.sh", "sentinel (?:down-after|failover|parallel)[a-z-]*"),
        *(guard.of_sentinels() if guard else ()),
    )
    return made


def freeze(node: Node) -> None:
    node.server.signal(signal.SIGSTOP)


def thaw(node: Node) -> None:
    node.server.signal(signal.SIGCONT)
