"""Vector stores in a whole stack, from zero: the official client, the packaged embedder, the seeded engine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openai import OpenAI
from redis import Redis

from eventing.redis import keys
from tests.integration.stack import MODEL, LocalStack, openai_client

HANDBOOK = """# Handbook

## Leave
Every employee has thirty days of paid leave a year.

## Expenses
Train tickets are refunded in second class, within two weeks.
"""
ASTRONOMY = """# Astronomy

Saturn's rings are made of ice and rock, and are at most a kilometre thick.
"""


SETTINGS = {"vector_store_names": ["library"], "max_num_results": 1}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("vectors")
    retrieve = {"step": "retrieve", "settings": SETTINGS}
    blocking = {"step": "ground", "settings": {"mode": "block", "min_score": 0.9}}
    plan = {
        "planned": {"steps": [retrieve]},
        "grounded": {"steps": [retrieve, "ground"]},
        "blocked": {"steps": [retrieve, blocking]},
    }
    (folder / "pipelines.yaml").write_text(yaml.safe_dump(plan))
    flags = ("--model", f"{MODEL}=seeded", "--model", "planned=seeded")
    flags += ("--model", "grounded=seeded", "--model", "blocked=seeded")
    flags += ("--pipelines", str(folder / "pipelines.yaml"))
    made = LocalStack(folder / "data", *flags).start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[OpenAI]:
    with openai_client(stack) as made:
        yield made


@pytest.fixture(scope="module")
def store_id(client: OpenAI) -> str:
    """A vector store with both texts, indexed."""
    store = client.vector_stores.create(name="library")
    files = [("handbook.md", HANDBOOK.encode()), ("astronomy.md", ASTRONOMY.encode())]
    batch = client.vector_stores.file_batches.upload_and_poll(
        vector_store_id=store.id, files=files, poll_interval_ms=100
    )
    assert (batch.status, batch.file_counts.completed) == ("completed", 2)
    return store.id


def test_a_search_finds_the_passage_by_meaning_and_by_word(client: OpenAI, store_id: str) -> None:
    by_meaning = client.vector_stores.search(
        store_id, query="How much vacation do I get?", ranking_options={"ranker": "none"}
    )
    by_word = client.vector_stores.search(store_id, query="kilometre", max_num_results=1)

    assert by_meaning.data[0].filename == "handbook.md"
    assert "thirty days" in by_meaning.data[0].content[0].text
    assert 0 < by_meaning.data[0].score <= 1
    assert [hit.filename for hit in by_word.data] == ["astronomy.md"]


def test_a_response_searches_files_and_cites_them(client: OpenAI, store_id: str) -> None:
    response = client.responses.create(
        model=MODEL,
        input="How many days of paid leave does every employee have?",
        tools=[{"type": "file_search", "vector_store_ids": [store_id], "max_num_results": 1}],
        include=["file_search_call.results"],
        max_output_tokens=40,
    )

    search, message = response.output
    assert search.type == "file_search_call"
    assert (search.status, len(search.results or ())) == ("completed", 1)
    assert search.results is not None
    assert search.results[0].filename == "handbook.md"
    assert "thirty days of paid leave" in (search.results[0].text or "")
    assert message.type == "message"
    assert response.tools[0].type == "file_search"


def test_a_streamed_response_tells_of_its_search(client: OpenAI, store_id: str) -> None:
    stream = client.responses.create(
        model=MODEL,
        input="How thick are the rings?",
        tools=[{"type": "file_search", "vector_store_ids": [store_id]}],
        max_output_tokens=20,
        stream=True,
    )
    events = list(stream)

    kinds = [event.type for event in events]
    assert kinds[:6] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert [item.type for item in last.response.output] == ["file_search_call", "message"]


def test_the_same_question_again_is_a_hit_until_the_files_change(client: OpenAI) -> None:
    store = client.vector_stores.create()
    files = client.vector_stores.files
    file = ("handbook.md", HANDBOOK.encode())
    files.upload_and_poll(
        vector_store_id=store.id, file=file, attributes={"year": 2024}, poll_interval_ms=100
    )
    since = {"type": "gte", "key": "year", "value": 2024}
    search = {"type": "file_search", "vector_store_ids": [store.id], "filters": since}

    def ask() -> tuple[str, dict[str, Any]]:
        raw = client.responses.with_raw_response.create(
            model=MODEL,
            input="How many days of leave?",
            tools=[search],  # type: ignore[list-item]
            include=["file_search_call.results"],
            max_output_tokens=10,
            temperature=0,
            extra_headers={"Cache-Control": "max-age=3600"},
        )
        answer: dict[str, Any] = json.loads(raw.text)
        return raw.headers.get("cache-status", ""), answer

    first, again = ask(), ask()
    assert "hit" not in first[0]
    assert "; hit" in again[0]
    assert again[1]["output"][1]["content"] == first[1]["output"][1]["content"]
    assert first[1]["output"][0]["results"][0]["attributes"] == {"year": 2024}
    assert again[1]["output"][0]["results"] == first[1]["output"][0]["results"] != []

    more = ("astronomy.md", ASTRONOMY.encode())
    files.upload_and_poll(vector_store_id=store.id, file=more, poll_interval_ms=100)
    assert "hit" not in ask()[0]


def test_a_plan_retrieves_for_chat_completions(client: OpenAI, store_id: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="planned",
        messages=[{"role": "user", "content": "How many days of paid leave?"}],
        max_tokens=5,
    )
    job_id = raw.headers["torpor-job-id"]

    job = httpx.get(f"{client.base_url!s}jobs/{job_id}").json()

    (step,) = job["pipeline"]
    assert (step["step"], step["status"]) == ("retrieve", "completed")
    assert [each["filename"] for each in step["detail"]["sources"]] == ["handbook.md"]
    assert job["usage"]["prompt_tokens"] > 20


def answered_job(client: OpenAI, model: str) -> dict[str, Any]:
    """A job of this model that has ended, once retrieval had passages for it."""
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "How many days of paid leave?"}],
        max_tokens=40,  # in five words there may be none that can be compared
    )
    got = httpx.get(f"{client.base_url!s}jobs/{raw.headers['torpor-job-id']}").json()
    assert isinstance(got, dict)
    return got


def test_an_answer_is_shown_with_what_its_passages_do_not_support(
    client: OpenAI, store_id: str
) -> None:
    job = answered_job(client, "grounded")

    text = job["result"]["choices"][0]["message"]["content"]
    step = job["pipeline"][1]
    seen = (job["state"], step["step"], step["status"])
    assert seen == ("completed", "ground", "completed"), job["pipeline"]
    verdict = step["detail"]["grounding"]
    assert verdict["score"] < 1  # the seeded engine writes words that no passage has
    assert verdict["citations_ok"] is True
    spans = [text[each["start"] : each["end"]] for each in verdict["unsupported"]]
    assert spans
    assert not [span for span in spans if span in HANDBOOK]


def test_an_answer_that_its_passages_do_not_support_is_withheld(
    client: OpenAI, store_id: str
) -> None:
    job = answered_job(client, "blocked")

    assert (job["state"], job["incomplete_reason"]) == ("incomplete", "content_filter")
    assert job["pipeline"][1]["detail"]["grounding"]["score"] < 0.9
    assert not ((job["result"] or {}).get("choices") or [{}])[0].get("message", {}).get("content")


def test_the_example_answers_twice_and_the_second_time_from_the_cache(
    stack: LocalStack, tmp_path: Path
) -> None:
    (tmp_path / "handbook.md").write_text(HANDBOOK)
    (tmp_path / "astronomy.html").write_text(f"<html><p>{ASTRONOMY}</p></html>")
    example = Path(__file__).parents[2] / "examples/ask_files.py"
    command = [sys.executable, str(example), str(tmp_path), "How many days of leave?"]
    env = os.environ | {"OPENAI_BASE_URL": stack.addresses["api"] + "/v1"}

    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)

    assert "2 of 2 files are indexed" in ran.stdout
    assert ran.stdout.count("found handbook.md") == 2
    assert ran.stdout.count("from the cache") == 1


def test_files_are_indexed_although_the_steps_are_killed(client: OpenAI, stack: LocalStack) -> None:
    """kill -9 of the steps process while it indexes: another one goes on."""
    store = client.vector_stores.create()
    text = " ".join(f"word{n}" for n in range(1500)).encode()
    files = [client.files.create(file=(f"{n}.txt", text), purpose="assistants") for n in range(2)]
    small = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}
    batch = client.vector_stores.file_batches.create(
        store.id,
        file_ids=[file.id for file in files],
        chunking_strategy={"type": "static", "static": small},
    )
    index = keys.index("default", store.id, "chunks")
    with Redis.from_url(stack.addresses["redis"]) as redis:
        stack.until(lambda: bool(redis.scard(index)))
    for replica in stack.status()["steps"]["replicas"]["list"]:
        os.kill(replica["pid"], signal.SIGKILL)

    ended = client.vector_stores.file_batches.poll(
        batch.id, vector_store_id=store.id, poll_interval_ms=200
    )

    assert (ended.status, ended.file_counts.completed) == ("completed", 2)
    found = client.vector_stores.search(store.id, query="word1499", max_num_results=5)
    assert len({(hit.file_id, hit.content[0].text) for hit in found.data}) == len(found.data)
