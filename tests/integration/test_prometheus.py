"""A real Prometheus scrapes a real stack, and every query that we ship gets an answer."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from knative.monitoring.dashboard import queries
from tests.integration.stack import LocalStack
from tests.redis_server import free_port

pytestmark = [
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (Debian package)"
    ),
]
MANIFESTS = Path(__file__).parents[2] / "manifests"
PREDICTOR_FAILS = {"max_tokens": 6, "seeded": {"fail_at": 3, "output_tokens": 6}}


class Prometheus:
    """Debian's, on the files of `torpor up --metrics`, scraping every second."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(config.read_text().replace("_interval: 5s", "_interval: 1s"))
        with (folder / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **query: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self._port}/api/v1/{path}", params=query)
        return answer.json()["data"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=query)["result"]
        return found

    def until_scraped(self, times: int) -> None:
        """Wait until every target was scraped so often."""
        deadline = time.monotonic() + 40
        while True:
            try:
                counts = self.ask("count_over_time(up[5m])")
                if counts and min(int(each["value"][1]) for each in counts) >= times:
                    return
            except (httpx.HTTPError, ValueError, KeyError):
                pass  # it is not up, or has no data yet and says so in plain text
            assert time.monotonic() < deadline, "Prometheus did not scrape the stack"
            time.sleep(0.2)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Looks at a stack before, while and after it works."""
    env = {"TORPOR_GPU_PRICE_PER_HOUR": "3.6"}
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as running:
        stack = LocalStack(folder / "data", "--window", "60s", "--metrics", env=env).start()
        running.callback(stack.stop)
        made = Prometheus(folder / "data" / "metrics")
        running.callback(made.stop)
        made.until_scraped(2)
        for _ in range(3):
            stack.job(stack.submit(max_tokens=8), wait_s=20)
        assert stack.job(stack.submit(**PREDICTOR_FAILS), wait_s=20)["state"] == "failed"
        made.until_scraped(8)
        yield made


OF_PODS = (
    *("torpor_step_", "torpor_upstream_", "torpor_provider_", "torpor_routed_", "torpor_tier_"),
    *("torpor_tool_", "torpor_turn_prefixes_", 'queue=~"tool-'),
    *("torpor_prefix_claims_", "torpor_claim_passes_", "torpor_left_jobs_"),
    *("torpor_model_not_starting", "torpor_hallucination_", "torpor_critic_", "torpor_audit"),
)
"""Of processes that come and go and are scraped on a cluster only, of pumps beside their engines, and of providers,
plans, tools, fallbacks and audits, which this stack has not.
"""


@pytest.mark.parametrize("query", [q for q in queries() if not any(n in q for n in OF_PODS)])
def test_a_panel_has_data(prometheus: Prometheus, query: str) -> None:
    series = prometheus.ask(query)

    assert series
    assert [s for s in series if s["value"][1] != "NaN"], "nothing but NaN"


def test_a_dead_letter_is_seen_at_its_first(prometheus: Prometheus) -> None:
    (found,) = [
        each
        for each in prometheus.ask("sum by (trigger) (increase(torpor_dead_letters_total[5m]))")
        if each["metric"]["trigger"].startswith("requests-")
    ]

    assert float(found["value"][1]) > 0


def test_the_dead_letter_pages_and_nothing_else_does(prometheus: Prometheus) -> None:
    deadline = time.monotonic() + 10
    while True:
        listed = prometheus.get("alerts")["alerts"]
        firing = {a["labels"]["alertname"] for a in listed if a["state"] == "firing"}
        if firing or time.monotonic() > deadline:
            break

    assert firing == {"TorporDeadLetters"}


def test_no_rule_fails_to_be_evaluated(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("rules")["groups"]

    assert {rule["name"]: rule.get("lastError", "") for rule in group["rules"]} == {
        rule["name"]: "" for rule in group["rules"]
    }


def keda_queries() -> list[str]:
    """The Prometheus triggers in the rendered manifests."""
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "prometheus" and "metadata" in node:
                found.append(node["metadata"]["query"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)
        elif isinstance(node, str) and "type: prometheus" in node:
            walk(yaml.safe_load(node))  # a patch

    folders = (MANIFESTS / name for name in ("base", "components", "overlays"))
    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            walk(document)
    return sorted(set(found))


@pytest.mark.parametrize("query", keda_queries())
def test_a_keda_trigger_gets_one_number(prometheus: Prometheus, query: str) -> None:
    assert len(prometheus.ask(query)) == 1


def rendered_queries() -> list[str]:
    """What the dashboard among the rendered manifests asks of api and broker."""
    path = MANIFESTS / "components" / "monitoring" / "dashboard.yaml"
    (content,) = yaml.safe_load(path.read_text())["data"].values()
    panels = json.loads(content)["panels"]
    asked = [t["expr"].replace("$model", ".+") for p in panels for t in p.get("targets", [])]
    predictors = ("torpor_predictor", "torpor_engine", "torpor_cold", "torpor_tokens_")
    elsewhere = (
        *OF_PODS,
        *predictors,
        "torpor_time_",
        "DCGM",
        "vllm:",
        "torpor_attempts",
        "torpor_fenced",
    )
    return [query for query in asked if not any(word in query for word in elsewhere)]


@pytest.mark.parametrize("query", rendered_queries())
def test_a_panel_of_the_rendered_dashboard_has_data(prometheus: Prometheus, query: str) -> None:
    assert prometheus.ask(query)
