"""What a rule stops while it is made: what it counts, on the test engine and the store in memory."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from eventing.cloudevent.event import Event
from eventing.cloudevent.job_event import job_of
from eventing.job.job import Job, JobState
from eventing.job.plan import Plan, PlannedStep
from tests.unit.predictor.harness import (
    Harness,
    asking,
    data_of,
    job_id_of,
    open_harness,
    text_of,
)

LONG: dict[str, Any] = {"output_tokens": 400}


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    async with open_harness() as made:
        yield made


async def judged(harness: Harness, event: Event, word: str) -> Job:
    """The job of the event, ended, with a rule that forbids a word."""
    settings = {"mode": "block", "hold": "window", "rules": [{"words": [word]}]}
    plan = Plan(steps=(PlannedStep(name="validate-output", settings=settings),))
    await harness.store.submit(replace(job_of(event), plan=plan))
    await harness.deliver(event)
    job = await harness.store.get(job_id_of(event))
    assert job is not None
    return job


def rare_words(texts: list[str]) -> str:
    """Three words of the middle of the last text that stand nowhere before."""
    *others, last = [" ".join(text.split()) for text in texts]
    words = last.split()
    threes = [" ".join(words[at : at + 3]) for at in range(40, len(words) - 60)]
    return next(
        three
        for three in threes
        if three.replace(" ", "").isalpha()
        and not any(three in other for other in others)
        and last.split(three)[0].count(" ") >= 40
    )


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_stopped_answer_counts_its_prompt_and_what_was_made_of_every_choice(
    harness: Harness, choices: int
) -> None:
    plain = data_of(await harness.deliver(asking(event_id="plain", seeded=LONG, n=choices)))
    word = rare_words([each["message"]["content"] for each in plain["response"]["choices"]])

    event = asking(event_id="judged", seeded=LONG, n=choices)
    job = await judged(harness, event, word)

    assert (job.state, job.incomplete) == (JobState.INCOMPLETE, "content_filter")
    assert job.usage is not None
    made, whole = job.usage["completion_tokens"], plain["usage"]["completion_tokens"]
    assert job.usage["prompt_tokens"] == plain["usage"]["prompt_tokens"] > 0
    assert whole / choices * (choices - 1) + 40 < made < whole
    assert job.usage["total_tokens"] == job.usage["prompt_tokens"] + made
    assert job.result is not None
    assert job.result["usage"] == job.usage


async def test_an_answer_that_is_withheld_at_its_end_counts_what_the_engine_says(
    harness: Harness,
) -> None:
    plain = await harness.deliver(asking(event_id="plain", seeded={"output_tokens": 12}))
    last = text_of(plain).split()[-1]

    job = await judged(harness, asking(event_id="judged", seeded={"output_tokens": 12}), last)

    assert job.incomplete == "content_filter"
    assert job.usage == data_of(plain)["usage"]


async def test_the_usage_so_far_is_no_part_of_the_stream(harness: Harness) -> None:
    event = asking(event_id="judged", seeded=LONG)
    await judged(harness, event, "nothing-of-this-kind")

    assert not any("usage" in entry.delta for entry in await harness.entries(event) if entry.delta)
