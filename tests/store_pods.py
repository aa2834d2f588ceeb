"""The pods of a store with three servers, as child processes: the scripts of their containers with the environment
that the manifests give them, each pod on a loopback address of its own.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis as redis_client

from knative.deploy.first_secrets import redis_secret
from knative.deploy.render import parts
from knative.deploy.render.store import CONFIG
from tests.redis_server import VALKEY, free_port

SCRIPTS: Final = Path(__file__).parents[1] / "knative/deploy/store"
HOSTS: Final = ("127.0.41.1", "127.0.41.2", "127.0.41.3")
_WITHIN_S: Final = 40.0


@dataclass(eq=False)
class StorePods:
    """Three pods; `secret` is what the first-secrets job makes for them."""

    folder: Path
    secret: dict[str, str]
    server_port: int
    sentinel_port: int
    running: dict[tuple[int, str], subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.addressed(self.secret["url"])

    def addressed(self, text: str) -> str:
        """`text` with the names and the ports of a cluster replaced by those of this machine."""
        for name, host in zip(parts.store_hosts("torpor", 3), HOSTS, strict=True):
            text = text.replace(f"{name}:26379", f"{host}:{self.sentinel_port}")
        return text

    def environment(self, number: int) -> dict[str, str]:
        return {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "POD_NAME": f"torpor-redis-{number}",
            "HOSTS": " ".join(HOSTS),
            "SERVER_PORT": str(self.server_port),
            "SENTINEL_PORT": str(self.sentinel_port),
            "BIND": HOSTS[number],
            "LOCALHOST": HOSTS[number],
            "DATA": str(self.disk(number)),
            "CONFIG": str(self.folder),
            "USERS": str(self.folder / "users.acl"),
            "PASSWORD": self.secret["password"],
            "SNAPSHOT": str(self.folder / "dump.rdb"),
        }

    def disk(self, number: int) -> Path:
        return self.folder / f"disk-{number}"

    def script(self, number: int, name: str) -> int:
        """Run a script of a pod to its end; give its exit status."""
        words = ["sh", str(SCRIPTS / name)]
        return subprocess.run(words, env=self.environment(number), timeout=120).returncode

    def start(self, number: int) -> None:
        self.disk(number).mkdir(exist_ok=True)
        for name in ("server", "sentinel"):
            with (self.folder / f"{name}-{number}.log").open("ab") as log:
                self.running[number, name] = subprocess.Popen(
                    ["sh", str(SCRIPTS / f"start-{name}.sh")],
                    env=self.environment(number),
                    cwd=self.disk(number),
                    stdout=log,
                    stderr=log,
                )

    def end(self, number: int, how: int = signal.SIGKILL) -> None:
        for name in ("server", "sentinel"):
            process = self.running.pop((number, name), None)
            if process is not None:
                process.send_signal(how)
                process.wait(60)

    def lose_disk(self, number: int) -> None:
        shutil.rmtree(self.disk(number))

    def server(self, number: int) -> "redis_client.Redis[Any]":
        return redis_client.Redis(
            host=HOSTS[number], port=self.server_port, password=self.secret["password"]
        )

    def role(self, number: int) -> str:
        with suppress(redis_client.RedisError), self.server(number) as server:
            found = server.info("replication")
            if found["role"] == "slave" and found["master_link_status"] == "up":
                return "replica"
            if found["role"] == "master" and found["connected_slaves"] > 0:
                return "primary"
        return "none"

    def primary(self) -> int:
        """The one that has a replica in step."""
        until(lambda: "primary" in map(self.role, range(3)))
        return [self.role(number) for number in range(3)].index("primary")

    def in_step(self) -> None:
        """Return once one is the primary and both others replicate from it."""
        until(lambda: sorted(map(self.role, range(3))) == ["primary", "replica", "replica"])
        until(lambda: all(map(self._knows_all, range(3))))

    def _knows_all(self, number: int) -> bool:
        with suppress(redis_client.RedisError), self.sentinel(number) as sentinel:
            replicas = sentinel.sentinel_slaves(parts.WATCHED)
            others = sentinel.sentinel_sentinels(parts.WATCHED)
            return len(others) == 2 and sum(not each["is_sdown"] for each in replicas) == 2
        return False

    def sentinel(
        self, number: int, user: str = "", password: str = ""
    ) -> "redis_client.Redis[Any]":
        return redis_client.Redis(
            host=HOSTS[number],
            port=self.sentinel_port,
            username=user or None,
            password=password or self.secret["password"],
            decode_responses=True,
        )


def until(holds: Callable[[], bool], within_s: float = _WITHIN_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to be"
        time.sleep(0.1)


@contextmanager
def store_pods(folder: Path) -> Iterator[StorePods]:
    """Three pods that were never started before."""
    numbers = iter("abcdefghijklmnopqrstuvwxyz" * 9)
    secret = redis_secret("torpor", lambda size: "".join(next(numbers) for _ in range(size)), 3)
    pods = StorePods(folder, secret, free_port(), free_port())
    (folder / "bin").mkdir()
    (folder / "bin/valkey-server").symlink_to(VALKEY)
    (folder / "bin/valkey-cli").symlink_to(str(shutil.which("redis-cli")))
    (folder / "users.acl").write_text(secret["users.acl"])
    config = CONFIG.format(limit=64).replace("/etc/valkey-users", str(folder))
    config += "repl-diskless-sync-delay 0\n"
    (folder / "valkey.conf").write_text(config.replace("dir /data", "# dir is the pod's own"))
    try:
        yield pods
    finally:
        for number in range(3):
            pods.end(number)
