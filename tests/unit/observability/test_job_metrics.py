"""Ended jobs are counted once, under labels that callers cannot invent."""

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import AttemptRecord, Job, JobId, JobRequest, JobState
from eventing.job.plan import Plan, PlannedStep, StepRecord, StepStatus
from eventing.telemetry.metric.job import JobMetrics

MODEL = "counted-model"


def a_job(number: int = 1, *, model: str = MODEL, **changes: object) -> Job:
    fields: dict[str, object] = {
        "state": JobState.COMPLETED,
        "request": JobRequest(url="/v1/completions", body={"model": model, "prompt": "x"}),
        "attempt": 1,
        "created_ms": 1_000,
        "started_ms": 3_000,
        "first_token_ms": 4_000,
        "finished_ms": 9_000,
        "usage": {"prompt_tokens": 3, "completion_tokens": 11},
        "history": (AttemptRecord(attempt=1, owner="a", started_ms=3_000, outcome="completed"),),
    }
    return Job(id=JobId(f"job_{number:024x}"), **(fields | changes))  # type: ignore[arg-type]


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_waits_are_counted_from_the_submit() -> None:
    before = value("torpor_ttft_seconds_sum", model=MODEL, lane="default")

    await JobMetrics([MODEL]).ended(a_job())

    assert value("torpor_ttft_seconds_sum", model=MODEL, lane="default") - before == 3.0


async def test_the_time_per_token_is_the_time_between_tokens() -> None:
    before = value("torpor_job_time_per_output_token_seconds_sum", model=MODEL)

    await JobMetrics([MODEL]).ended(a_job())

    after = value("torpor_job_time_per_output_token_seconds_sum", model=MODEL)
    assert after - before == 0.5


async def test_a_job_reported_twice_counts_once() -> None:
    metrics = JobMetrics([MODEL])
    before = value("torpor_jobs_ended_total", model=MODEL, lane="default", state="completed")

    await metrics.ended(a_job(2))
    await metrics.ended(a_job(2))

    after = value("torpor_jobs_ended_total", model=MODEL, lane="default", state="completed")
    assert after - before == 1


async def test_a_redriven_job_counts_again_when_it_ends_again() -> None:
    metrics = JobMetrics([MODEL])
    before = value("torpor_jobs_ended_total", model=MODEL, lane="default", state="completed")

    await metrics.ended(a_job(4))
    await metrics.ended(a_job(4, attempt=2, finished_ms=20_000))

    after = value("torpor_jobs_ended_total", model=MODEL, lane="default", state="completed")
    assert after - before == 2


async def test_a_made_up_model_becomes_no_label() -> None:
    await JobMetrics([MODEL]).ended(a_job(5, model="made-up-by-a-stranger"))

    labels = {s.labels.get("model") for f in REGISTRY.collect() for s in f.samples}
    assert "made-up-by-a-stranger" not in labels
    assert "other" in labels


async def test_a_made_up_outcome_becomes_no_label() -> None:
    history = (AttemptRecord(attempt=1, owner="a", started_ms=1, outcome="what-the-engine-said"),)

    await JobMetrics([MODEL]).ended(a_job(6, history=history))

    outcomes = {s.labels.get("outcome") for f in REGISTRY.collect() for s in f.samples}
    assert "what-the-engine-said" not in outcomes


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        pytest.param("torpor_lease_losses_total", {"model": MODEL}, id="lost_lease"),
        pytest.param("torpor_job_retries_total", {"model": MODEL}, id="retry"),
        pytest.param(
            "torpor_dead_letters_total", {"trigger": f"requests-{MODEL}"}, id="dead_letter"
        ),
        pytest.param("torpor_refused_writes_total", {"model": MODEL}, id="refused_write"),
    ],
)
async def test_trouble_is_counted(name: str, labels: dict[str, str]) -> None:
    metrics = JobMetrics([MODEL])
    before = value(name, **labels)
    history = (
        AttemptRecord(attempt=1, owner="a", started_ms=1, outcome="lost"),
        AttemptRecord(attempt=2, owner="b", started_ms=2, outcome="failure"),
    )

    await metrics.ended(
        a_job(7, state=JobState.FAILED, history=history, is_dead_letter=True, refused_writes=1)
    )

    assert value(name, **labels) - before == 1


def test_counters_that_page_stand_at_zero_before_anything_happens() -> None:
    JobMetrics(["fresh-model"])

    shown = REGISTRY.get_sample_value(
        "torpor_dead_letters_total", {"trigger": "requests-fresh-model"}
    )
    assert shown == 0.0


async def test_no_more_jobs_are_remembered_than_are_likely_to_be_reported_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventing.telemetry.metric.job._REMEMBERED", 2)
    metrics = JobMetrics([MODEL])
    before = value("torpor_jobs_ended_total", model=MODEL, lane="default", state="completed")

    for number in (11, 12, 13, 13, 12, 11):
        await metrics.ended(a_job(number))

    after = value("torpor_jobs_ended_total", model=MODEL, lane="default", state="completed")
    assert after - before == 4  # the first was forgotten, and counts again


async def test_a_kept_answer_is_a_hit_with_its_saved_tokens_and_no_wait() -> None:
    metrics = JobMetrics([MODEL])
    use = CacheUse(status=CacheStatus.HIT, kind=CacheKind.EXACT, saved_usage={"total_tokens": 12})
    names = {
        "torpor_cache_jobs_total": {"model": MODEL, "status": "hit", "kind": "exact"},
        "torpor_cache_saved_tokens_total": {"model": MODEL, "kind": "exact"},
        "torpor_ttft_seconds_count": {"model": MODEL, "lane": "default"},
    }
    before = [value(name, **labels) for name, labels in names.items()]

    await metrics.ended(replace(a_job(21), cache=use))

    after = [value(name, **labels) for name, labels in names.items()]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 12, 0]


def planned(*steps: str, **details: dict[str, object]) -> dict[str, object]:
    """A plan of these steps, the last ones not run, and what those that ran say."""
    records = tuple(
        StepRecord(step=name, status=StepStatus.COMPLETED, detail=detail)
        for name, detail in ((name.replace("_", "-"), each) for name, each in details.items())
    )
    return {"plan": Plan(steps=tuple(PlannedStep(name=n) for n in steps)), "pipeline": records}


@pytest.mark.parametrize(
    ("steps", "answered", "reason"),
    [
        pytest.param({"route": {"rules": ["words"]}}, MODEL, "words", id="one rule"),
        pytest.param({"route": {"rules": ["words", "tools"]}}, MODEL, "several", id="two rules"),
        pytest.param({"route": {"rules": ["sk-1"]}}, MODEL, "other", id="an unknown rule"),
        pytest.param(
            {
                "route": {"rules": ["plain"]},
                "validate_output": {"reason": "an answer was not valid"},
            },
            MODEL,
            "cascade",
            id="asked one tier up",
        ),
        pytest.param({"route": {"rules": ["plain"]}}, "made-up", "plain", id="an unknown model"),
    ],
)
async def test_a_tier_is_counted_by_the_rule_that_chose_it(
    steps: dict[str, dict[str, object]], answered: str, reason: str
) -> None:
    shown = answered if answered == MODEL else "other"
    labels = {"model": MODEL, "answered": shown, "reason": reason}
    before = value("torpor_routed_jobs_total", **labels)
    details = {name: {"answered": answered, **each} for name, each in steps.items()}

    await JobMetrics([MODEL]).ended(a_job(31, **planned("route", "validate-output", **details)))

    assert value("torpor_routed_jobs_total", **labels) - before == 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [("breaker_open, late", "breaker_open"), ("late", "late"), ("what a provider wrote", "other")],
)
async def test_an_answer_of_a_stand_in_is_counted_by_the_first_reason(
    said: str, reason: str
) -> None:
    labels = {"model": MODEL, "reason": reason}
    before = value("torpor_fallback_jobs_total", **labels)
    result = {"choices": [], "routing": {"asked": "a", "answered": "b", "reason": said}}

    await JobMetrics([MODEL]).ended(a_job(32, result=result))

    assert value("torpor_fallback_jobs_total", **labels) - before == 1


async def test_an_answer_of_the_model_itself_is_no_fallback() -> None:
    def all_of_them() -> float:
        found = (f for f in REGISTRY.collect() if f.name == "torpor_fallback_jobs")
        return sum(s.value for f in found for s in f.samples if s.name.endswith("_total"))

    before = all_of_them()

    await JobMetrics([MODEL]).ended(a_job(33, result={"choices": []}))

    assert all_of_them() == before


@pytest.mark.parametrize(
    ("incomplete", "ran", "by"),
    [
        ("content_filter", ("validate_output", "ground"), "ground"),
        ("content_filter", ("validate_output",), "validate-output"),
        ("content_filter", ("retrieve",), "predictor"),
        ("content_filter_unavailable", ("validate_output",), "unavailable"),
    ],
)
async def test_a_withheld_answer_is_counted_by_who_withheld_it(
    incomplete: str, ran: tuple[str, ...], by: str
) -> None:
    labels = {"model": MODEL, "by": by}
    before = value("torpor_withheld_jobs_total", **labels)
    steps = planned("retrieve", "validate-output", "ground", **{name: {} for name in ran})

    await JobMetrics([MODEL]).ended(
        a_job(34, state=JobState.INCOMPLETE, incomplete=incomplete, **steps)
    )

    assert value("torpor_withheld_jobs_total", **labels) - before == 1


async def test_an_answer_that_was_asked_again_is_an_attempt_of_its_own_kind() -> None:
    labels = {"model": MODEL, "outcome": "rejected"}
    before = value("torpor_job_attempts_total", **labels)
    history = (
        AttemptRecord(attempt=1, owner="a", started_ms=1, outcome="rejected"),
        AttemptRecord(attempt=2, owner="a", started_ms=2, outcome="completed"),
    )

    await JobMetrics([MODEL]).ended(a_job(35, history=history))

    assert value("torpor_job_attempts_total", **labels) - before == 1


ROUTED: dict[str, object] = {"asked": MODEL, "answered": "small", "rules": ["plain"]}
HELD_OUT = {**ROUTED, "answered": "large", "rules": ["holdout"], "instead_of": "small"}
WITHHELD = {"state": JobState.INCOMPLETE, "incomplete": "content_filter"}
AGAIN = (AttemptRecord(attempt=1, owner="a", started_ms=1, outcome="rejected"),)


@pytest.mark.parametrize(
    ("details", "changes", "group", "outcome"),
    [
        ({"route": ROUTED}, {}, "chosen", "good"),
        ({"route": HELD_OUT}, {}, "holdout", "good"),
        ({"route": ROUTED, "validate_output": {"valid": False}}, {}, "chosen", "bad"),
        ({"route": HELD_OUT, "validate_output": {"valid": False}}, {}, "holdout", "bad"),
        ({"route": ROUTED}, {"history": AGAIN}, "chosen", "bad"),
        ({"route": ROUTED}, {"state": JobState.FAILED}, "chosen", "bad"),
        ({"route": ROUTED}, WITHHELD, "chosen", "bad"),
        ({"route": ROUTED, "ground": {"grounding": {"citations_ok": False}}}, {}, "chosen", "bad"),
    ],
)
async def test_the_outcome_of_a_tier_is_counted_beside_that_of_its_holdout(
    details: dict[str, dict[str, object]], changes: dict[str, object], group: str, outcome: str
) -> None:
    labels = {"model": MODEL, "tier": "small", "group": group, "outcome": outcome}
    before = value("torpor_tier_outcomes_total", **labels)

    job = a_job(51, **(planned("route", "validate-output", "ground", **details) | changes))
    await JobMetrics([MODEL, "small", "large"]).ended(job)

    assert value("torpor_tier_outcomes_total", **labels) - before == 1


@pytest.mark.parametrize(
    ("detail", "changes"),
    [({**ROUTED, "rules": ["effort"]}, {}), (ROUTED, {"state": JobState.CANCELLED}), ({}, {})],
    ids=["by effort", "cancelled", "not routed"],
)
async def test_a_job_whose_tier_was_not_drawn_counts_in_no_regret(
    detail: dict[str, object], changes: dict[str, object]
) -> None:
    def counted() -> float:
        found = next(f for f in REGISTRY.collect() if f.name == "torpor_tier_outcomes")
        return sum(sample.value for sample in found.samples if sample.name.endswith("_total"))

    before = counted()
    job = a_job(52, **(planned("route", route=detail) | changes))
    await JobMetrics([MODEL, "small"]).ended(job)

    assert counted() == before
