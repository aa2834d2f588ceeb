"""`simulate` and `plan` as a user types them."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from knative.autoscaling.keda.scaledobject import read_scaled_object
from torpor.cli.errors import UserError
from torpor.cli.measure.simulate import app

# Thirty seconds of three long answers a second: more than three replicas can take at once.
IMPOSSIBLE = ["plan", "--profile", "steady", "--minutes", "0.5", "--base-rate", "3"]
IMPOSSIBLE += ["--engine", "cpu-small", "--concurrency", "4"]
SHORT = ["--profile", "steady", "--minutes", "5", "--base-rate", "0.05"]


def typed(*words: str) -> str:
    """What is printed; raises what the command raised."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_comparison_says_the_target_and_who_keeps_it_cheapest(tmp_path: Path) -> None:
    html_file = tmp_path / "r.html"

    shown = typed("simulate", *SHORT, "--compare", "--p95-wait", "90s", "--html", str(html_file))

    assert "GPU-seconds" in shown
    assert "target: p95 wait of at most 90 s; the cheapest that keeps it: " in shown
    assert html_file.read_text().count("<svg") == 7


def test_json_is_all_that_goes_to_the_screen() -> None:
    reports = json.loads(typed("simulate", *SHORT, "--compare", "--json"))

    assert [one["policy"] for one in reports] == ["kpa, defaults", "keda, defaults", "work"]
    assert len({one["requests"] for one in reports}) == 1


def test_a_manifest_brings_its_own_policy(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "thinker"},
        "spec": {"template": {"spec": {"containerConcurrency": 3}}},
    }
    path.write_text(yaml.safe_dump(service))
    assert "kpa thinker" in typed("simulate", *SHORT, "--manifest", str(path))


def test_a_folder_of_manifests_brings_all_of_its_policies(tmp_path: Path) -> None:
    for name in ("owl", "bat"):
        service = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"template": {"spec": {"containerConcurrency": 3}}},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(service))
    (tmp_path / "config.yml").write_text("apiVersion: v1\nkind: ConfigMap\n")

    shown = typed("simulate", *SHORT, "--manifest", str(tmp_path))

    assert "kpa owl" in shown
    assert "kpa bat" in shown


def test_a_plan_ends_with_a_manifest_to_apply() -> None:
    words = ["plan", *SHORT, "--p95-wait", "90s", "--tail", "60", "--model", "owl"]
    result = CliRunner().invoke(app, words)
    patch = yaml.safe_load(result.stdout)  # nothing else stands there: `plan > patch.yaml` applies
    assert read_scaled_object(patch).triggers[0].key == "work"
    assert patch["metadata"]["name"] == "owl"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simulate"], "exactly one of them"),
        (["simulate", *SHORT, "--policy", "magic"], "kpa, keda, work"),
        (["simulate", *SHORT, "--engine", "abacus"], "cpu-small"),
        (["simulate", "--trace", "nowhere.csv"], "nowhere.csv"),
        (["plan", *SHORT, "--p95-wait", "soon"], "30s, 2m or 1h"),
        (
            [*IMPOSSIBLE, "--p95-wait", "10ms", "--cold-start", "60", "--tail", "5"],
            "none of",
        ),
    ],
    ids=["no load", "policy", "engine", "trace", "duration", "impossible"],
)
def test_an_invalid_call_gives_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises((UserError, OSError), match=message):  # `main` has words for both
        typed(*words)


def test_the_story_writes_the_plots_that_its_page_shows(tmp_path: Path) -> None:
    typed("black-friday", str(tmp_path))

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"black-friday-{name}.svg" for name in ("cpu-percent", "p95-s", "queued", "ready")
    ]
    shown = Path(__file__).parents[3] / "docs" / "images"
    assert all((shown / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_plan_says_what_sleeping_between_the_turns_of_measured_jobs_costs(tmp_path: Path) -> None:
    call = {
        "server": "web",
        "tool": "fetch",
        "sent_ms": 2000,
        "ended_ms": 4000,
        "approval_id": None,
    }
    usage = {"prompt_tokens": 900, "completion_tokens": 100}
    first = {"ended_ms": 2000, "usage": usage, "calls": [call]}
    last = {"ended_ms": 9000, "usage": usage, "calls": []}
    path = tmp_path / "jobs.jsonl"
    path.write_text(json.dumps({"state": "completed", "usage": usage, "turns": [first, last]}))

    told = typed("plan", "--jobs", str(path), "--cold-start", "20")

    assert "held through all tools: 2.0 GPU-seconds between turns" in told
    path.write_text("{}")
    with pytest.raises(UserError, match="no job as GET /v1/jobs/ID shows it"):
        typed("plan", "--jobs", str(path))
