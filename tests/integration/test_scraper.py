"""A real Prometheus reads an api on another address with the key that the first Secrets hold."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from knative.deploy.first_secrets import keys_secret
from tests import time_limits
from tests.redis_server import die_with_parent, free_port


def own_address() -> str:
    """An address of this machine that is not loopback; empty when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address would
        except OSError:
            return ""
        return str(probe.getsockname()[0])


ADDRESS = own_address()
needs_address = pytest.mark.skipif(
    ADDRESS in ("", "127.0.0.1"), reason="this machine has no address but loopback"
)


class Api:
    """`python -m api` that others can reach, with the keys of the first Secrets."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        secret = keys_secret(int(time.time()))
        (folder / "keys.json").write_text(secret["keys.json"])
        (folder / "metrics-key").write_text(secret["metrics-key"])
        self.key = secret["metrics-key"]
        self.key_file = folder / "metrics-key"
        self.port = free_port()
        settings = {
            "TORPOR_HOST": "0.0.0.0",
            "TORPOR_PORT": str(self.port),
            "TORPOR_REDIS_URL": redis_url,
            "TORPOR_KEYS_SOURCE": str(folder / "keys.json"),
        }
        self._log = (folder / "api.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "api"],
            env=os.environ | time_limits.ENVIRONMENT | settings,
            stderr=self._log,
            preexec_fn=die_with_parent,
        )
        self.until_it_answers()

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}"

    def until_it_answers(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise TimeoutError("the api does not answer")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Api]:
    made = Api(tmp_path_factory.mktemp("scraper"), redis_url)
    yield made
    made.stop()


@needs_address
def test_from_elsewhere_the_scrapers_key_opens_metrics_and_nothing_else(api: Api) -> None:
    key = {"authorization": f"Bearer {api.key}"}
    answers = {
        "no key": httpx.get(f"{api.url}/metrics").status_code,
        "the key": httpx.get(f"{api.url}/metrics", headers=key).status_code,
        "jobs": httpx.get(f"{api.url}/v1/jobs", headers=key).status_code,
        "result events": httpx.post(f"{api.url}/internal/events", headers=key).status_code,
    }

    assert answers == {"no key": 401, "the key": 200, "jobs": 403, "result events": 403}


@needs_address
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_every_metrics_page_is_well_formed(api: Api) -> None:
    text = httpx.get(f"{api.url}/metrics", headers={"authorization": f"Bearer {api.key}"}).content

    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, timeout=120
    )

    assert checked.returncode == 0, checked.stderr
    assert b"torpor_api_limited_total" in text


@needs_address
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_is_let_in_with_the_key_and_not_without(api: Api, tmp_path: Path) -> None:
    target: dict[str, Any] = {"static_configs": [{"targets": [f"{ADDRESS}:{api.port}"]}]}
    keyed = {"job_name": "keyed", "authorization": {"credentials_file": str(api.key_file)}}
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [keyed | target, {"job_name": "bare"} | target],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,
        )
    try:
        up = until_both_were_tried(port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    assert up == {"keyed": "1", "bare": "0"}


def until_both_were_tried(port: int) -> dict[str, str]:
    """`up` of each scrape job."""
    deadline = time.monotonic() + time_limits.HANG_S
    while time.monotonic() < deadline:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/query"
            found = httpx.get(url, params={"query": "up"}).json()["data"]["result"]
            if len(found) == 2:
                return {each["metric"]["job"]: each["value"][1] for each in found}
        except (httpx.TransportError, KeyError, ValueError):
            pass  # it is starting: no answer, or a 503 in plain text
        time.sleep(0.1)
    raise TimeoutError("Prometheus did not scrape")
