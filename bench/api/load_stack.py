"""Valkey, a broker and one api as processes on cores of their own, for `bench.api.load`.

The api alone has core 0; on a 2-core machine all the rest shares the other.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.torpor_up import ROOT
from tests.redis_server import VALKEY, free_port

API_CORE: Final = "0"
_CARD: Final = {"name": "m", "context_tokens": 2048}
_TRIGGER: Final = """
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: requests-m}
spec:
  broker: default
  filter: {attributes: {type: dev.torpor.inference.requested.v1, model: m}}
  delivery: {retry: 100000, backoffPolicy: linear, backoffDelay: PT30S}
  subscriber: {uri: http://127.0.0.1:9/}
"""


class Ports:
    def __init__(self) -> None:
        self.redis, self.broker, self.api = (free_port() for _ in range(3))
        self.pids: dict[str, int] = {}

    @property
    def api_pid(self) -> int:
        return self.pids["api"]

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis}/0"


@contextmanager
def stack(real_broker: bool) -> Iterator[Ports]:
    """Valkey, a broker and one api, all ended with the block."""
    ports = Ports()
    rest = ",".join(str(core) for core in range(1, os.cpu_count() or 2))
    os.sched_setaffinity(0, {int(core) for core in rest.split(",")})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ended:
        env = _settings(ports, folder)
        valkey = [str(VALKEY), "--port", str(ports.redis), "--dir", folder]
        broker = [sys.executable, "-m", "bench.api.load_parts", "broker", str(ports.broker)]
        if real_broker:
            broker = [sys.executable, "-m", "eventing.broker"]
        for name, cores, port, command in (
            ("store", rest, ports.redis, [*valkey, "--save", "", "--appendonly", "yes"]),
            ("broker", rest, ports.broker, broker),
            ("api", API_CORE, ports.api, [sys.executable, "-m", "api"]),
        ):
            process = _start(["taskset", "-c", cores, *command], env | {"TORPOR_PORT": str(port)})
            ended.callback(_end, process)
            _wait_for(port)
            ports.pids[name] = process.pid
        yield ports


def _settings(ports: Ports, folder: str) -> dict[str, str]:
    """What broker and api are told. The broker's triggers are written to `folder`."""
    triggers = Path(folder, "triggers.yaml")
    triggers.write_text(_TRIGGER)
    return {
        **os.environ,
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_LIMIT_OPEN_STREAMS": "10000",
        "TORPOR_REDIS_URL": ports.redis_url,
        "TORPOR_MODELS": json.dumps([_CARD]),
        "TORPOR_BROKER_URL": f"http://127.0.0.1:{ports.broker}/",
        "TORPOR_FILES_URL": f"file://{folder}/files",
        "TORPOR_TRIGGERS_FILE": str(triggers),
    }


def _start(command: list[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, env=env, cwd=ROOT, stdout=quiet, stderr=quiet)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)


def _wait_for(port: int) -> None:
    end_s = time.monotonic() + 20
    while time.monotonic() < end_s:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")
