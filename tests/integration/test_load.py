"""`torpor load` against a whole stack: every kind of client, both loops, and its report."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stack import TORPOR, LocalStack

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    env = {"TORPOR_GPU_PRICE_PER_HOUR": "3.6"}
    flags = ("--window", "60s", "--container-concurrency", "8")
    made = LocalStack(tmp_path_factory.mktemp("load"), *flags, env=env).start()
    yield made
    made.stop()


def load(stack: LocalStack, folder: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """The report and the page."""
    said = subprocess.run(
        [
            *(TORPOR, "load", "--data-dir", str(stack.folder), "--minutes", "0.1"),
            *("--json", "--html", str(folder / "r.html"), *flags),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout), (folder / "r.html").read_text()


@pytest.fixture(scope="module")
def open_loop(
    stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str]:
    flags = ("--profile", "steady", "--rate", "6", "--peak", "6", "--output-median", "10")
    return load(stack, tmp_path_factory.mktemp("open"), *flags)


def test_nothing_that_was_accepted_is_lost(open_loop: tuple[dict[str, Any], str]) -> None:
    report, _ = open_loop

    assert report["lost"] == 0
    assert report["outcomes"] == {"completed": report["sent"]}


def test_every_kind_of_client_took_part(open_loop: tuple[dict[str, Any], str]) -> None:
    report, _ = open_loop

    assert report["seconds_by_client"].keys() == {"async", "sse", "sync"}


@pytest.mark.parametrize("name", ["wait", "ttft", "total"])
def test_every_time_is_known_of_every_job(open_loop: tuple[dict[str, Any], str], name: str) -> None:
    report, _ = open_loop

    assert report["seconds"][name]["count"] == report["sent"]


def test_the_first_token_comes_after_the_wait_and_before_the_end(
    open_loop: tuple[dict[str, Any], str],
) -> None:
    seconds = open_loop[0]["seconds"]

    assert seconds["wait"]["p50"] <= seconds["ttft"]["p50"] <= seconds["total"]["p50"]


def test_the_report_has_the_cost(open_loop: tuple[dict[str, Any], str]) -> None:
    report, _ = open_loop

    assert report["cost"]["cost"] > 0
    assert report["cost"]["per_1k_output_tokens"] > 0
    assert report["replicas"]["most"] == 1


def test_the_page_has_its_plots(open_loop: tuple[dict[str, Any], str]) -> None:
    _, html = open_loop

    assert html.count("<svg") >= 5
    assert not re.search(r"\de\+\d", html)  # 79,510,000 bytes, not 7.951e+07


def test_users_of_a_closed_loop_wait_for_their_answers(stack: LocalStack, tmp_path: Path) -> None:
    report, _ = load(stack, tmp_path, "--users", "3", "--clients", "async", "--output-median", "10")

    assert report["sent"] >= 3
    assert report["outcomes"] == {"completed": report["sent"]}
    assert "coordinated omission" in report["notes"][0]


def test_a_trace_comes_at_its_own_times(stack: LocalStack, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = "\n".join(f"{at},20,5" for at in (0, 1, 1, 2))
    trace.write_text("time_s,prompt_tokens,output_tokens\n" + rows)

    report, _ = load(stack, tmp_path, "--trace", str(trace), "--clients", "sse")

    assert report["sent"] == 4
    assert report["span_s"] >= 2


def test_an_unknown_model_is_refused_and_counted(stack: LocalStack, tmp_path: Path) -> None:
    report, _ = load(stack, tmp_path, "--rate", "3", "--peak", "3", "--model", "unknown")

    assert report["outcomes"] == {"refused": report["sent"]}
    assert {status[0] for status in report["refusals_by_status"]} == {"4"}


def report_of(stack: LocalStack) -> dict[str, Any]:
    """What `torpor usage` says of the last hour."""
    said = subprocess.run(
        [TORPOR, "usage", "--since", "1h", "--json", "--data-dir", str(stack.folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    usage: dict[str, Any] = json.loads(said.stdout)
    return usage


def test_the_report_command_shows_the_same_cost(
    stack: LocalStack, open_loop: tuple[dict[str, Any], str]
) -> None:
    usage = report_of(stack)
    seconds = usage["total"]["gpu_seconds"]
    assert usage["total"]["jobs"] >= open_loop[0]["sent"]
    assert seconds["busy"] >= seconds["kept"] > 0
    assert usage["tenants"]["default"]["cost_all_in"] == pytest.approx(
        usage["total"]["cost"]["total"], rel=0.02
    )


def test_top_shows_queue_replicas_and_cost(stack: LocalStack) -> None:
    said = subprocess.run(
        [TORPOR, "top", "--once", "--every", "0.5", "--data-dir", str(stack.folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert said.returncode == 0, said.stderr
    for word in ("expected wait", "ready", "GPUs busy", "dead letters", "output tokens", "cost"):
        assert word in said.stdout


def test_a_job_shows_what_it_cost_as_a_hand_reckons_it(stack: LocalStack) -> None:
    job_id = stack.submit(max_tokens=20)
    stack.job(job_id, wait_s=55)

    # Predictors post every five seconds, and the api looks as often: the two agree soon after.
    def bears_its_part() -> bool:
        cost, seconds = stack.job(job_id)["cost"], report_of(stack)["total"]["gpu_seconds"]
        paid_s = seconds["waking"] + seconds["idle"] + seconds["busy"]
        all_in = cost["cost"] * paid_s / seconds["kept"]
        return bool(cost["cost_all_in"] == pytest.approx(all_in, rel=0.2))

    stack.until(bears_its_part, 40)
    cost = stack.job(job_id)["cost"]
    total = report_of(stack)["total"]
    # 3.60 an hour is a thousandth a second.
    assert cost["cost"] == pytest.approx(cost["gpu_seconds"] / 1000, abs=1e-6)
    assert cost["cost_per_1k_output_tokens"] == pytest.approx(cost["cost"] * 50, rel=1e-3)
    seconds = total["gpu_seconds"]
    paid_s = seconds["waking"] + seconds["idle"] + seconds["busy"]
    assert total["cost"]["total"] == pytest.approx(paid_s / 1000, abs=1e-5)
    assert total["cost"]["per_1k_output_tokens"] == pytest.approx(
        paid_s / total["output_tokens"], rel=1e-3
    )
