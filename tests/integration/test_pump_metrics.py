"""A pump beside a predictor has no ingress; what it delivers is shown all the same."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import time_limits
from tests.redis_server import free_port

TRIGGER = """
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: requests-m}
spec: {subscriber: {uri: "http://127.0.0.1:9/events"}}
"""


@pytest.fixture
def pump(tmp_path: Path, redis_url: str) -> Iterator[str]:
    """The address of a running pump's metrics."""
    (tmp_path / "triggers.yaml").write_text(TRIGGER)
    port = free_port()
    env = (
        os.environ
        | time_limits.ENVIRONMENT
        | {
            "TORPOR_REDIS_URL": redis_url,
            "TORPOR_TRIGGERS_FILE": str(tmp_path / "triggers.yaml"),
            "TORPOR_METRICS_PORT": str(port),
        }
    )
    process = subprocess.Popen([sys.executable, "-m", "eventing.pump"], env=env)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


def shown(address: str, path: str) -> httpx.Response:
    deadline = time.monotonic() + 15
    while True:
        try:
            return httpx.get(address + path)
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_pump_shows_its_deliveries_and_its_queue(pump: str) -> None:
    text = shown(pump, "/metrics").text

    assert 'torpor_queue_depth{lane="default",model="m"}' in text
    assert "torpor_deliveries_total" in text


def test_a_pump_takes_no_events(pump: str) -> None:
    assert shown(pump, "/healthz").status_code == 200
    assert httpx.post(pump + "/").status_code == 404
