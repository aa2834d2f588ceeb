"""What a batch gives back: answers and errors under the names of its lines, its models and usage."""

from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from api.batch.batch import BatchStatus, parse_batch
from tests.integration.api.batch_rig import (
    URL,
    ended,
    entries,
    lines,
    new_batch,
    running,
    start,
    told,
)
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import FakeEngine


def test_a_record_of_a_newer_version_is_read() -> None:
    record = orjson.loads(replace(new_batch("t", "f"), status=BatchStatus.VALIDATING).to_json())
    record |= {
        "colour": "blue",
        "running": [{"number": 1, "custom_id": "a", "job_id": "j", "x": 1}],
    }

    assert parse_batch(orjson.dumps(record)).running[0].custom_id == "a"


async def test_a_file_of_which_no_line_can_run_is_a_failed_batch(
    rig: Rig, engine: FakeEngine
) -> None:
    body = b"\n".join(orjson.dumps(chat_line(model="nobody", custom_id=f"c{n}")) for n in range(30))
    batch_id = await start(rig, body)
    async with running(rig):
        batch = await ended(rig, batch_id)

    errors = await entries(rig, batch["error_file_id"])
    assert batch["status"] == "failed"
    assert batch["request_counts"] == {"total": 30, "completed": 0, "failed": 30}
    assert [error["line"] for error in batch["errors"]["data"]] == list(range(1, 21))
    assert {error["code"] for error in batch["errors"]["data"]} == {"model_not_found"}
    assert len(errors) == 30


async def test_a_batch_shows_its_model_and_usage(rig: Rig, engine: FakeEngine) -> None:
    batch_id = await start(rig, lines(3))
    async with running(rig):
        batch = await ended(rig, batch_id)

    assert batch["model"] == "m"
    assert batch["usage"] == {
        "input_tokens": 21,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 30,
    }


async def test_a_file_as_excel_writes_it_is_answered_under_its_own_names(
    rig: Rig, engine: FakeEngine
) -> None:
    body = b"\xef\xbb\xbf" + lines(3).replace(b"\n", b"\r\n") + b"\r\n\r\n"
    batch_id = await start(rig, body)
    async with running(rig):
        batch = await ended(rig, batch_id)

    assert batch["status"] == "completed"
    assert await told(rig, batch) == Counter(["c1", "c2", "c3"])


async def test_results_expire_when_the_batch_says(rig: Rig, engine: FakeEngine) -> None:
    wish = {"anchor": "created_at", "seconds": 7200}
    batch_id = await start(rig, lines(1), output_expires_after=wish)
    async with running(rig):
        batch = await ended(rig, batch_id)

    card = (await rig.client.get(f"/v1/files/{batch['output_file_id']}")).json()
    assert card["expires_at"] == card["created_at"] + 7200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        pytest.param({"metadata": {"a": 1}}, "metadata.a", id="a number"),
        pytest.param({"metadata": {"k" * 65: "x"}}, f"metadata.{'k' * 64}", id="a long name"),
        pytest.param({"metadata": {"k": "x" * 513}}, "metadata.k", id="a long text"),
        pytest.param(
            {"output_expires_after": {"anchor": "now", "seconds": 7200}},
            "output_expires_after.anchor",
            id="anchor",
        ),
    ],
)
async def test_a_call_that_can_never_run_names_what_is_wrong(
    rig: Rig, change: dict[str, Any], param: str
) -> None:
    form = {"file": ("in.jsonl", lines(1)), "purpose": (None, "batch")}
    file_id = (await rig.client.post("/v1/files", files=form)).json()["id"]
    call = {"input_file_id": file_id, "endpoint": URL, "completion_window": "24h"}

    answer: httpx.Response = await rig.client.post("/v1/batches", json=call | change)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def responses(*bodies: dict[str, Any]) -> bytes:
    return b"\n".join(
        orjson.dumps({"custom_id": f"c{n}", "url": "/v1/responses", "body": {"model": "m"} | body})
        for n, body in enumerate(bodies, 1)
    )


async def test_a_batch_of_responses_gives_response_objects(rig: Rig, engine: FakeEngine) -> None:
    wanted = {"input": "hi", "instructions": "be brief", "metadata": {"a": "1"}}
    batch_id = await start(rig, responses(wanted, {"input": "ho"}), endpoint="/v1/responses")
    async with running(rig):
        batch = await ended(rig, batch_id)

    bodies = {
        entry["custom_id"]: entry["response"]["body"]
        for entry in await entries(rig, batch["output_file_id"])
    }
    first = bodies["c1"]
    assert (batch["status"], batch["model"], len(bodies)) == ("completed", "m", 2)
    assert (first["object"], first["status"], first["instructions"]) == (
        "response",
        "completed",
        "be brief",
    )
    assert first["metadata"] == {"a": "1"}
    assert first["output"][-1]["content"][0]["text"] == engine.answer
    assert (await rig.client.get(f"/v1/responses/{first['id']}")).json() == first


async def test_a_batchs_response_goes_on_from_an_earlier_one(rig: Rig, engine: FakeEngine) -> None:
    earlier = await rig.client.post("/v1/responses", json={"model": "m", "input": "one"})
    body = responses({"input": "two", "previous_response_id": earlier.json()["id"]})
    batch_id = await start(rig, body, endpoint="/v1/responses")
    async with running(rig):
        await ended(rig, batch_id)

    said = [message["content"] for message in engine.played[-1].request.body["messages"]]
    assert said == ["one", engine.answer, "two"]


async def test_a_response_that_can_never_run_names_the_field_of_its_line(
    rig: Rig, engine: FakeEngine
) -> None:
    unknown = {"input": "x", "previous_response_id": "resp_" + "0" * 24}
    body = responses({"input": "ok"}, {"input": 7}, unknown, {"input": "x", "metadata": {"a": 1}})
    batch_id = await start(rig, body, endpoint="/v1/responses")
    async with running(rig):
        batch = await ended(rig, batch_id)

    refused = await entries(rig, batch["error_file_id"])
    assert {entry["custom_id"]: entry["error"]["param"] for entry in refused} == {
        "c2": "body.input",
        "c3": "body.previous_response_id",
        "c4": "body.metadata.a",
    }
