"""The timeline of a job."""

from dataclasses import replace
from typing import Any

import pytest

from api.view.timeline import timeline
from api.webhook.schedule import TryVerdict
from api.webhook.webhook import JOB_WEBHOOK, Try, WebhookDelivery
from eventing.job.cache.cache import CacheKind, CacheStatus, CacheUse
from eventing.job.job import AttemptRecord, Job, JobId, JobRequest, JobState
from eventing.replica import Replica

ATTEMPT = AttemptRecord(attempt=1, owner="p-1", started_ms=5000, ended_ms=8000, outcome="completed")
ENDED = Job(
    id=JobId("job_" + "a" * 24),
    state=JobState.COMPLETED,
    request=JobRequest(url="/v1/completions", body={"model": "m", "prompt": "x"}),
    attempt=1,
    token_count=20,
    created_ms=1000,
    started_ms=5000,
    first_token_ms=5500,
    finished_ms=8000,
    history=(ATTEMPT,),
)
WAITING = replace(
    ENDED,
    state=JobState.QUEUED,
    started_ms=0,
    first_token_ms=0,
    finished_ms=0,
    token_count=0,
    history=(),
)
READY = Replica(
    id="p-1", phase="ready", since_ms=4900, seen_ms=9000, phases={"import": 2.0, "weights": 1.5}
)
SENT = Try(at_ms=8050, status=204, error="", duration_ms=30)
DELIVERY = WebhookDelivery(
    id="wh_1",
    tenant="t",
    endpoint="we_1",
    url="https://hooks.example.com/secret?token=x",
    type="response.completed",
    subject="job",
    body=b"",
    created_ms=8040,
    state=TryVerdict.DELIVERED,
    tries=1,
    log=(SENT,),
)


def steps(told: dict[str, Any]) -> list[tuple[str, int, int | None]]:
    return [(step["step"], step["at_ms"], step["duration_ms"]) for step in told["steps"]]


def test_a_timeline_is_in_order_with_durations() -> None:
    told = timeline(ENDED, [READY], [DELIVERY], now_ms=9000)

    assert steps(told) == [
        ("accepted", 1000, None),
        ("queued", 1000, 4000),
        ("waking", 1400, 2000),
        ("waking", 3400, 1500),
        ("attempt", 5000, 3000),
        ("tokens", 5500, 2500),
        ("completed", 8000, 7000),
        ("delivery", 8050, 30),
    ]
    assert told["is_whole"]


def test_a_running_step_has_its_duration_until_now() -> None:
    importing = Replica(id="p-9", phase="import", since_ms=2000, seen_ms=3000)

    told = timeline(WAITING, [importing], [], now_ms=3000)

    assert steps(told) == [("accepted", 1000, None), ("queued", 1000, 2000), ("waking", 2000, 1000)]
    assert not told["is_whole"]


@pytest.mark.parametrize(
    "replicas",
    [
        pytest.param([], id="it is gone"),
        pytest.param([replace(READY, id="p-2")], id="another took the job"),
        pytest.param([replace(READY, since_ms=900)], id="it was awake before"),
    ],
)
def test_a_timeline_has_no_cold_start_that_the_job_did_not_wait_for(
    replicas: list[Replica],
) -> None:
    told = timeline(ENDED, replicas, [], now_ms=9000)

    assert "waking" not in [step["step"] for step in told["steps"]]


def test_every_try_of_a_delivery_is_a_step_and_its_url_stays_hidden() -> None:
    refused = replace(SENT, at_ms=8045, status=503, next_ms=8050)
    twice = replace(DELIVERY, tries=2, log=(refused, SENT))

    tries = [s for s in timeline(ENDED, [], [twice], 9000)["steps"] if s["step"] == "delivery"]

    assert [(t["try"], t["status"], t["next_ms"]) for t in tries] == [
        (1, 503, 8050),
        (2, 204, None),
    ]
    assert tries[0]["host"] == "hooks.example.com"
    assert "secret" not in str(tries)


@pytest.mark.parametrize(
    ("job", "delivery"),
    [
        pytest.param(
            replace(ENDED, metadata={JOB_WEBHOOK: "http://x/"}), None, id="its end was not told yet"
        ),
        pytest.param(
            ENDED, replace(DELIVERY, state=TryVerdict.PENDING, tries=0, log=()), id="not tried yet"
        ),
    ],
)
def test_a_life_is_not_whole_while_something_is_to_come(job: Job, delivery: Any) -> None:
    assert not timeline(job, [], [delivery] if delivery else [], 9000)["is_whole"]


def test_a_delivery_that_is_tried_again_for_days_is_not_waited_for() -> None:
    again = replace(DELIVERY, state=TryVerdict.PENDING, log=(replace(SENT, status=500, next_ms=1),))

    assert timeline(ENDED, [], [again], 9000)["is_whole"]


def test_a_job_that_was_answered_from_the_cache_says_by_which_job_and_was_never_queued() -> None:
    use = CacheUse(status=CacheStatus.HIT, kind=CacheKind.EXACT, source_job="job_1")
    steps = timeline(replace(ENDED, cache=use, history=()), [], [], 9000)["steps"]
    assert [step["step"] for step in steps][:2] == ["accepted", "cache"]
    assert (steps[1]["outcome"], steps[1]["kind"], steps[1]["source_job"]) == (
        "hit",
        "exact",
        "job_1",
    )
    assert "queued" not in [step["step"] for step in steps]
    missed = replace(ENDED, cache=CacheUse(status=CacheStatus.MISS, key="cache_1"))
    names = [step["step"] for step in timeline(missed, [], [], 9000)["steps"]]
    assert names[:3] == ["accepted", "cache", "queued"]
