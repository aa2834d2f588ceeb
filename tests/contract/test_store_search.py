"""The start of a prompt in lists, and searches."""

import asyncio
from dataclasses import replace

import pytest

from eventing.job.job import JobRequest
from eventing.job.list_cursor import LIST_LOOKS
from eventing.job.store import ListField
from tests.contract.rig import Rig, dead, job_id, new_job


async def asked(rig: Rig, name: str, prompt: str) -> None:
    await rig.store.submit(new_job(name, prompt=prompt))
    await rig.pass_time(2)


async def found(rig: Rig, search: str) -> list[str]:
    page = await rig.store.list_jobs("acme", search=search)
    return [job.event_id for job in page.jobs]


async def test_a_list_shows_the_start_of_prompts_on_request(rig: Rig) -> None:
    await asked(rig, "1", "why  do\nbirds sleep? " + "x" * 1000)

    (plain,) = (await rig.store.list_jobs("acme")).jobs
    (job,) = (await rig.store.list_jobs("acme", include=[ListField.PROMPT])).jobs

    assert plain.prompt == ""
    assert job.prompt.startswith("why do birds sleep? xxx")
    assert len(job.prompt) == 160
    assert job.request.body == {"model": "m"}


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("birds", ["2", "1"]),
        ("SLEEP birds", ["1"]),
        ("nothing", []),
        (job_id("3"), ["3"]),
        ("", ["3", "2", "1"]),
    ],
    ids=["one word", "each word, in any case", "no match", "an id", "no search"],
)
async def test_a_search_reads_prompt_and_id(rig: Rig, search: str, names: list[str]) -> None:
    await asked(rig, "1", "Why do birds sleep?")
    await asked(rig, "2", "How do birds fly?")
    await asked(rig, "3", "2+2?")

    assert await found(rig, search) == names


async def test_a_search_goes_on_behind_the_jobs_of_one_call(rig: Rig) -> None:
    await asked(rig, "oldest", "needle")
    await asyncio.gather(*(rig.store.submit(new_job(str(n))) for n in range(LIST_LOOKS)))

    first = await rig.store.list_jobs("acme", search="needle")
    second = await rig.store.list_jobs("acme", search="needle", cursor=first.next_cursor)

    assert first.jobs == ()
    assert [job.event_id for job in second.jobs] == ["oldest"]


async def test_a_request_that_was_mended_is_found_by_its_new_words(rig: Rig) -> None:
    await dead(rig, "1")
    job = await rig.store.get(job_id("1"))
    assert job is not None
    body = {"model": "m", "messages": [{"role": "user", "content": "mended words"}]}
    mended = replace(job.request, body=body)

    assert await rig.store.redrive(job, mended)

    assert await found(rig, "mended") == ["1"]


@pytest.mark.parametrize(
    ("body", "start"),
    [
        ({"prompt": ["one", "two"]}, "one two"),
        ({"prompt": [1, 2, 3]}, ""),
        ({"input": "text"}, "text"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "rows"}]},
            "q",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what is"},
                            {"type": "image_url", "image_url": {"url": "data:,x"}},
                            {"type": "text", "text": "this?"},
                        ],
                    }
                ]
            },
            "what is this?",
        ),
        ({"messages": "no list"}, ""),
        ({"messages": []}, ""),
        ({"messages": [7]}, ""),
    ],
    ids=[
        "several prompts",
        "token ids",
        "embeddings",
        "a tool's answer",
        "parts with an image",
        "no messages",
        "an empty chat",
        "a message that is none",
    ],
)
async def test_the_start_is_of_what_the_caller_asked_last(
    rig: Rig, body: dict[str, object], start: str
) -> None:
    new = replace(new_job("1"), request=JobRequest(url="/v1/any", body=body, custom_id="1"))
    await rig.store.submit(new)

    (job,) = (await rig.store.list_jobs("acme", include=[ListField.PROMPT])).jobs

    assert job.prompt == start
