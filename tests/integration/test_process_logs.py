"""Each process says one line at its start, one when its store goes, and one when it is back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.redis_server import RedisServer, die_with_parent, free_port

TRIGGERS = """\
metadata: {name: requests-m}
spec:
  filter: {attributes: {type: dev.torpor.inference.requested.v1, model: m}}
  subscriber: {uri: "http://127.0.0.1:9/events"}
"""
MODULES = {
    "api": "api",
    "broker": "eventing.broker",
    "pump": "eventing.pump",
    "predictor": "predictor",
    "scaler": "knative.external_scaler",
}
START = {
    "api": "started",
    "broker": "started",
    "pump": "started",
    "predictor": "loading",
    "scaler": "listening",
}


@dataclass
class Process:
    """One of ours with its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[dict[str, object]]:
        written = self.log.read_text().splitlines()
        return [json.loads(line) for line in written if line.startswith("{")]

    def count(self, event: str) -> int:
        return sum(line["event"] == event for line in self.lines())


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    # One that keeps what it has: a queue that is lost is a warning of its own.
    kept = ("--appendonly", "yes", "--appendfsync", "always")
    server = RedisServer(tmp_path / "redis", options=kept)
    server.start()
    yield server
    server.kill()


@pytest.fixture(params=MODULES)
def started(
    request: pytest.FixtureRequest, redis_server: RedisServer, tmp_path: Path
) -> Iterator[tuple[str, Process]]:
    triggers = tmp_path / "triggers.yaml"
    triggers.write_text(TRIGGERS)
    env = os.environ | {
        "TORPOR_REDIS_URL": redis_server.url,
        "TORPOR_TRIGGERS_FILE": str(triggers),
        "TORPOR_PORT": str(free_port()),
        "TORPOR_ANONYMOUS_ACCESS": "loopback",
        "TORPOR_FILES_URL": f"file://{tmp_path / 'files'}",
        "TORPOR_MODELS": '[{"name": "m"}]',
        "TORPOR_MODEL_NAME": "m",
        "TORPOR_BROKER_URL": "http://127.0.0.1:9/",
        "TORPOR_QUEUE": "requests-m",
        "TORPOR_MODEL": "m",
    }
    words = [sys.executable, "-m", MODULES[request.param]]
    if request.param == "predictor":
        words += ["--engine", "seeded", "--http_port", str(free_port())]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, env=env, stdout=out, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
        )
    yield request.param, Process(process, log)
    process.kill()
    process.wait()


def until(holds: Callable[[], bool], log: Path, limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_process_says_when_it_starts_and_when_its_store_goes_and_is_back(
    started: tuple[str, Process], redis_server: RedisServer
) -> None:
    name, process = started
    until(lambda: process.count(START[name]) == 1, process.log)
    if name == "predictor":
        until(lambda: process.count("ready") == 1, process.log)
    if name != "scaler":  # which looks at nothing before KEDA has asked it
        redis_server.kill()
        until(lambda: process.count("store is away") == 1, process.log)
        time.sleep(3)  # every loop has met it by now, several times
        redis_server.start()
        until(lambda: process.count("store is back") == 1, process.log)

        loud = [line for line in process.lines() if line["level"] in ("warning", "error")]
        told = [line["event"] for line in loud if line["action"] != "start"]
        assert told == ["store is away"]
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(60) == 0
