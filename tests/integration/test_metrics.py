"""`docs/metrics.md` and the `/metrics` of a running stack tell of the same families."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.stack import MODEL, LocalStack

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PARTS = ("api", "broker", "activator", "predictor", "steps")
UNITS = ("_seconds", "_total", "_bytes", "_per_minute")
COUNTS = {
    # Gauges that count things carry the thing's name, and so do shares.
    "torpor_audit_gpu_share",
    "torpor_audits_waiting",
    "torpor_critic_kappa",
    "torpor_hallucination_audited_jobs",
    "torpor_hallucination_rate",
    "torpor_hallucination_rate_low",
    "torpor_hallucination_rate_high",
    "torpor_model_not_starting",
    "torpor_queue_depth",
    "torpor_queue_abandoned_events",
    "torpor_queue_events",
    "torpor_queue_retrying",
    "torpor_jobs_in_flight",
    "torpor_deliveries_in_flight",
    "torpor_predictor_in_flight",
    "torpor_activator_requests",
    "torpor_step_runs_in_flight",
    "torpor_store_keys",
    "torpor_tool_calls_in_flight",
    "torpor_store_up",
    "torpor_engine_up",
    "torpor_provider_breaker_open",
    "torpor_provider_left",
    "torpor_replicas",
    "torpor_replicas_ready",
    "torpor_replicas_waking",
    "torpor_replicas_wanted",
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, set[str]]]]:
    """Family names and their labels, by part, of a stack that has done one job."""
    env = {"TORPOR_GPU_PRICE_PER_HOUR": "3.6"}
    folder = tmp_path_factory.mktemp("metrics")
    plans = folder / "pipelines.yaml"
    plans.write_text(f"{MODEL}: {{steps: [no-op]}}")
    flags = ("--window", "600s", "--pipelines", str(plans))
    stack = LocalStack(folder / "data", *flags, env=env).start()
    try:
        stack.job(stack.submit(max_tokens=5), wait_s=20)
        status = stack.status()
        (replica,), (steps,) = status["replicas"]["list"], status["steps"]["replicas"]["list"]
        addresses = stack.addresses | {"predictor": at(replica), "steps": at(steps)}
        # Some are read from the store at intervals, so the first look may come too early for them.
        stack.until(lambda: all(documented(p).keys() <= read(addresses[p]).keys() for p in PARTS))
        yield {part: read(addresses[part]) for part in PARTS}
    finally:
        stack.stop()


def at(replica: dict[str, str]) -> str:
    """Its address: its name has its port."""
    return f"http://127.0.0.1:{replica['id'].rsplit('-', 1)[1]}"


def read(address: str) -> dict[str, set[str]]:
    text = httpx.get(f"{address}/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if name.startswith("torpor_") and not name.endswith("_created"):
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def documented(part: str) -> dict[str, set[str]]:
    """Names and labels in the table under a part's heading."""
    text = PAGE.read_text()
    section = re.search(rf"^## The {part}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert section is not None, f"no section for the {part}"
    rows = re.findall(r"^\| `(torpor_\w+)` \| ([^|]*) \|", section[1], re.M)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


@pytest.mark.parametrize("part", PARTS)
def test_the_page_lists_what_a_part_shows(
    part: str, families: dict[str, dict[str, set[str]]]
) -> None:
    assert set(documented(part)) == set(families[part])


@pytest.mark.parametrize("part", PARTS)
def test_the_page_names_every_label(part: str, families: dict[str, dict[str, set[str]]]) -> None:
    page = documented(part)
    wrong = {
        name: labels - page[name]
        for name, labels in families[part].items()
        if labels - page.get(name, set())
    }

    assert not wrong


@pytest.mark.parametrize("part", PARTS)
def test_no_label_names_a_job_a_tenant_or_a_caller(
    part: str, families: dict[str, dict[str, set[str]]]
) -> None:
    labels = set().union(*families[part].values())

    assert not labels & {"job_id", "job", "tenant", "user", "key", "prompt", "request_id"}


@pytest.mark.parametrize("part", PARTS)
def test_names_carry_their_unit(part: str, families: dict[str, dict[str, set[str]]]) -> None:
    bare = {name for name in families[part] if not name.endswith(UNITS)}

    assert bare <= COUNTS


def test_metrics_for_scaling_are_exported_without_a_predictor(
    families: dict[str, dict[str, set[str]]],
) -> None:
    shown = set(families["api"]) | set(families["broker"])

    assert shown >= {
        "torpor_queue_depth",
        "torpor_queue_oldest_age_seconds",
        "torpor_jobs_in_flight",
        "torpor_queue_wait_seconds",
        "torpor_tokens_total",
        "torpor_gpu_cost_total",
    }
