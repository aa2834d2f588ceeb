"""The rules, judged by Prometheus's own tool: each alert fires when it should, and only then."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from knative.monitoring.dashboard import dashboard, queries
from knative.monitoring.files import RULES, files
from knative.monitoring.rule import Objective, alerts

ROOT = Path(__file__).parents[3]
ALERTS = {alert.name: alert for alert in alerts(Objective())}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)

M = 'model="m"'
BUSY = f'torpor_gpu_seconds_total{{{M},state="busy"}}'
KEPT = f'torpor_gpu_work_seconds_total{{{M},kind="kept"}}'
# Alert: (series that make it fire, when to look, series that must not).
CASES: dict[str, tuple[dict[str, str], str, dict[str, str]]] = {
    "TorporApiDown": (
        {'up{job="torpor-api"}': "0x20"},
        "5m",
        {'up{job="torpor-api"}': "1x20"},
    ),
    "TorporStoreDown": (
        {'torpor_store_up{instance="a"}': "1x20", 'torpor_store_up{instance="b"}': "0x20"},
        "5m",
        {'torpor_store_up{instance="a"}': "1x20"},
    ),
    "TorporQueueOld": (
        {f'torpor_queue_oldest_age_seconds{{{M},lane="batch"}}': "600+60x20"},
        "10m",
        {f'torpor_queue_oldest_age_seconds{{{M},lane="batch"}}': "600x20"},
    ),
    "TorporStuckAtZero": (
        {
            f'torpor_queue_depth{{{M},lane="default"}}': "2x40",
            f"torpor_replicas_ready{{{M}}}": "0x40",
        },
        "20m",
        {
            f'torpor_queue_depth{{{M},lane="default"}}': "2x40",
            f"torpor_replicas_ready{{{M}}}": "1x40",
        },
    ),
    "TorporNoProgress": (
        {
            f"torpor_jobs_in_flight{{{M}}}": "1x40",
            f'torpor_tokens_total{{{M},kind="output"}}': "500x40",
        },
        "30m",
        {
            f"torpor_jobs_in_flight{{{M}}}": "1x40",
            f'torpor_tokens_total{{{M},kind="output"}}': "500+10x40",
        },
    ),
    "TorporWaitOverObjective": (
        {
            f'torpor_queue_wait_seconds_bucket{{{M},le="60"}}': "0x40",
            f'torpor_queue_wait_seconds_bucket{{{M},le="120"}}': "0+10x40",
            f'torpor_queue_wait_seconds_bucket{{{M},le="+Inf"}}': "0+10x40",
        },
        "30m",
        {
            f'torpor_queue_wait_seconds_bucket{{{M},le="60"}}': "0+10x40",
            f'torpor_queue_wait_seconds_bucket{{{M},le="+Inf"}}': "0+10x40",
        },
    ),
    "TorporDeadLetters": (
        {'torpor_dead_letters_total{trigger="requests-m"}': "0x5 1x20"},
        "10m",
        {'torpor_dead_letters_total{trigger="requests-m"}': "7x40"},
    ),
    "TorporRetrying": (
        {'torpor_queue_retrying{queue="strays"}': "1x60"},
        "45m",
        {'torpor_queue_retrying{queue="strays"}': "1x10 0x50"},
    ),
    "TorporQueueAbandoned": (
        {'torpor_queue_abandoned_events{queue="requests-gone"}': "3x40"},
        "30m",
        {'torpor_queue_abandoned_events{queue="requests-gone"}': "3x10 0x30"},
    ),
    "TorporLeaseLosses": (
        {f"torpor_lease_losses_total{{{M}}}": "0+1x40"},
        "20m",
        {f"torpor_lease_losses_total{{{M}}}": "0x10 1x30"},
    ),
    "TorporWakeSlow": (
        {
            f'torpor_wake_seconds_bucket{{{M},phase="total",le="600"}}': "0x90",
            f'torpor_wake_seconds_bucket{{{M},phase="total",le="1200"}}': "0+1x90",
            f'torpor_wake_seconds_bucket{{{M},phase="total",le="+Inf"}}': "0+1x90",
        },
        "60m",
        {
            f'torpor_wake_seconds_bucket{{{M},phase="total",le="600"}}': "0+1x90",
            f'torpor_wake_seconds_bucket{{{M},phase="total",le="+Inf"}}': "0+1x90",
        },
    ),
    "TorporProviderOpen": (
        {f'torpor_provider_breaker_open{{{M},endpoint="e"}}': "1x40"},
        "30m",
        {f'torpor_provider_breaker_open{{{M},endpoint="e"}}': "1x10 0x30"},
    ),
    "TorporChecksDown": (
        {f'torpor_withheld_jobs_total{{{M},by="unavailable"}}': "0x5 1x20"},
        "10m",
        {f'torpor_withheld_jobs_total{{{M},by="ground"}}': "0+1x40"},
    ),
    "TorporCallsInDoubt": (
        {'torpor_tool_calls_total{server="mail",effect="once",outcome="in_doubt"}': "0x5 1x20"},
        "10m",
        {'torpor_tool_calls_total{server="mail",effect="once",outcome="returned"}': "0+1x40"},
    ),
    "TorporToolsChanged": (
        {'torpor_tool_list_changes_total{server="mail",seen="job"}': "0x5 1x20"},
        "10m",
        {'torpor_tool_list_changes_total{server="mail",seen="job"}': "3x40"},
    ),
    "TorporWaste": (
        {BUSY: "0+60x200", KEPT: "0+30x200"},
        "150m",
        {BUSY: "0+60x200", KEPT: "0+59x200"},
    ),
    "TorporCostBurn": (
        {f'torpor_gpu_cost_total{{{M},state="busy"}}': "0+1x300"},
        "250m",
        # Two apis that show the same ledger are not twice the cost.
        {
            f'torpor_gpu_cost_total{{{M},state="busy",instance="a"}}': "0+0.1x300",
            f'torpor_gpu_cost_total{{{M},state="busy",instance="b"}}': "0+0.1x300",
        },
    ),
}


def fires(folder: Path, name: str, series: dict[str, str], at: str) -> bool:
    """What `promtool test rules` says of the rule file and these series."""
    (folder / RULES).write_text(files()[RULES])
    asked = {
        "rule_files": [RULES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                        "eval_time": at,
                        "exp_samples": [],
                    }
                ],
            }
        ],
    }
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(asked))
    said = subprocess.run(
        ["promtool", "test", "rules", path.name], cwd=folder, capture_output=True, text=True
    )
    if said.returncode == 0:
        return False
    assert "got:" in said.stdout + said.stderr, said.stdout + said.stderr
    return True


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == ALERTS.keys()


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_it_fires_when_it_should(name: str, tmp_path: Path) -> None:
    series, at, _ = CASES[name]

    assert fires(tmp_path, name, series, at)


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_it_stays_silent_when_it_should(name: str, tmp_path: Path) -> None:
    _, at, series = CASES[name]

    assert not fires(tmp_path, name, series, at)


@needs_promtool
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    (tmp_path / RULES).write_text(files()[RULES])

    said = subprocess.run(
        ["promtool", "check", "rules", RULES], cwd=tmp_path, capture_output=True, text=True
    )

    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_run_book_that_says_what_to_do(name: str) -> None:
    text = (ROOT / ALERTS[name].run_book).read_text()

    assert text.startswith(f"# {name}\n")
    for part in ("## What it means", "## Look", "## Do"):
        assert part in text


@pytest.mark.parametrize("name", files())
def test_the_written_files_are_those_of_the_code(name: str) -> None:
    assert (ROOT / "docs/monitoring" / name).read_text() == files()[name]


def test_no_two_panels_lie_on_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        grid: dict[str, Any] = panel["gridPos"]
        own = {
            (grid["x"] + dx, grid["y"] + dy) for dx in range(grid["w"]) for dy in range(grid["h"])
        }
        assert not cells & own, panel["title"]
        cells |= own


def test_every_query_of_the_dashboard_is_in_what_grafana_imports() -> None:
    text = json.dumps(dashboard())

    for query in queries():
        assert json.dumps(query.replace('model=~".+"', 'model=~"$model"'))[1:-1] in text


def test_every_panel_says_what_it_tells_and_follows_the_chosen_model() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    by_model = [t["expr"] for p in panels for t in p["targets"] if "by (model" in t["expr"]]

    assert [panel["title"] for panel in panels if not panel["description"]] == []
    assert by_model
    assert [expr for expr in by_model if "$model" not in expr] == []


def test_every_metric_that_is_asked_for_is_on_the_page_of_metrics() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(torpor_\w+)` \|", page, re.MULTILINE))
    asked = {
        name.removesuffix("_bucket")
        for text in (*queries(), *(each.expression for each in ALERTS.values()))
        for name in re.findall(r"torpor_\w+", text)
        if name != "torpor-api"
    }

    assert asked - listed == set()
