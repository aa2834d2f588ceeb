"""Calls of tools that a person decides about in the jobs API, results that come later, and the tools of a tenant."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml
from redis.asyncio import Redis

from api.settings import AnonymousAccess, ApiSettings
from api.webhook.approval_notices import ApprovalNotices
from api.webhook.webhook import Message
from eventing.cloudevent.event import build_structured
from eventing.job.job import JobId, JobState
from eventing.job.tools.call import CallState, approval_item_id
from eventing.job.tools.known_list import address_digest, kept_tools
from eventing.job.tools.tool_list import PinnedTool, list_digest
from eventing.store.redis_store import RedisStore
from eventing.store.steps.redis_tool_lists import RedisToolLists
from tests.integration.api.conftest import Rig, chat_line, headers_of, rig_over
from tests.integration.api.fakes import FakeBroker
from tests.integration.api.tool_loop import Loop, said

TOOLS = {
    "servers": {
        "box": {"url": "http://box.tools/mcp", "approval": "never"},
        "pay": {
            "kind": "function",
            "url": "http://pay.tools/",
            "credential": "pay-token",
            "effect": "keyed",
            "description": "pays",
            "parameters": {"type": "object"},
            "tenants": ["acme"],
        },
    },
    "urls": {"tenants": ["acme"]},
}
SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"
BOX = {"type": "mcp", "server_label": "box"}
SEND = ("c0", "box__send", '{"to": "ann"}')
READ = ("c1", "box__read", '{"n": 1}')
QUESTION = {
    "requests": {
        "who": {
            "method": "elicitation/create",
            "params": {
                "message": "How many?",
                "requestedSchema": {
                    "type": "object",
                    "properties": {"count": {"type": "integer", "minimum": 1}},
                    "required": ["count"],
                },
            },
        }
    },
    "state": "s1",
}


@pytest.fixture
def tool_settings(api_settings: ApiSettings, tmp_path: Path) -> ApiSettings:
    path = tmp_path / "tools.yaml"
    path.write_text(yaml.safe_dump(TOOLS))
    return ApiSettings(**(api_settings.model_dump() | {"tools_file": path}))


@pytest.fixture
async def rig(
    tool_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> AsyncIterator[Rig]:
    async with rig_over(tool_settings, store, broker) as made:
        yield made


async def waiting(
    rig: Rig, *calls: Any, approval: str = "always", headers: dict[str, str] | None = None
) -> Loop:
    """A job whose turn was committed."""
    line = chat_line()
    line["body"]["tools"] = [{**BOX, "require_approval": approval}]
    answer = await rig.client.post("/v1/jobs", json=line, headers=headers or {})
    assert answer.status_code == 202, answer.text
    loop = Loop(rig, JobId(answer.json()["id"]))
    await loop.list_tools("box")
    await loop.answer("I look.", said(*calls))
    await loop.decide()
    return loop


def place_of(loop: Loop, place: int = 0, asked: int = 1) -> str:
    name = approval_item_id(loop.job_id, 1, place, asked)
    return f"/v1/jobs/{loop.job_id}/approvals/{name}"


async def state_of(loop: Loop, place: int = 0) -> CallState:
    return (await loop.job()).turns[0].calls[place].state


async def test_calls_that_wait_are_listed_and_decided(rig: Rig) -> None:
    loop = await waiting(rig, SEND, READ)
    listed = (await rig.client.get("/v1/approvals")).json()["data"]
    yes = await rig.client.post(place_of(loop, 0), json={"approve": True})
    no = await rig.client.post(place_of(loop, 1), json={"approve": False, "reason": "private"})
    rest = (await rig.client.get("/v1/approvals")).json()["data"]
    await loop.run(1, 0, "sent")
    messages = (await loop.job()).to_run.body["messages"]

    assert {(each["tool"], each["kind"], each["arguments"]) for each in listed} == {
        ("send", "approval", SEND[2]),
        ("read", "approval", READ[2]),
    }
    assert all(each["expires_at"] and each["job_id"] == loop.job_id for each in listed)
    assert (yes.status_code, yes.json()["state"], yes.json()["kind"]) == (
        200,
        "pending",
        "approval",
    )
    assert (no.json()["state"], no.json()["approver"]) == ("denied", "anonymous")
    assert rest == []
    assert "sent" in messages[-2]["content"]
    assert "private" in messages[-1]["content"]
    assert (await loop.job()).state is JobState.QUEUED


async def test_a_second_decision_gets_the_first(rig: Rig) -> None:
    loop = await waiting(rig, SEND)
    answers = [
        await rig.client.post(place_of(loop), json={"approve": approve})
        for approve in (True, False, True)
    ]

    assert [each.json()["state"] for each in answers] == ["pending"] * 3
    assert await state_of(loop) is CallState.PENDING


async def test_a_call_that_may_have_happened_is_decided(rig: Rig) -> None:
    loop = await waiting(rig, SEND, ("c2", "box__send", "{}"), approval="never")
    for place in (0, 1):
        await loop.run(1, place, "", CallState.IN_DOUBT, reason="no answer")
    (first, second) = (await rig.client.get("/v1/approvals")).json()["data"]
    wrong = await rig.client.post(place_of(loop, 0), json={"approve": True})
    ran = await rig.client.post(place_of(loop, 0), json={"decision": "it_ran", "output": "#7"})
    again = await rig.client.post(place_of(loop, 1), json={"decision": "run_again"})

    assert (first["kind"], second["kind"]) == ("doubt", "doubt")
    assert wrong.status_code == 400
    assert (ran.json()["state"], again.json()["state"]) == ("returned", "pending")
    assert (await loop.job()).turns[0].calls[0].output == "#7"


async def test_what_a_tool_asks_its_user_for_is_checked_and_given(rig: Rig) -> None:
    loop = await waiting(rig, SEND, approval="never")
    question = orjson.dumps(QUESTION).decode()
    await loop.run(1, 0, "", CallState.AWAITING_INPUT, reason="input", question=question)
    (asked,) = (await rig.client.get("/v1/approvals")).json()["data"]
    refused = [
        await rig.client.post(place_of(loop), json={"action": "accept", "content": content})
        for content in ({}, {"count": 0}, {"count": "1"}, {"count": 1, "x": 1}, [])
    ]
    taken = await rig.client.post(
        place_of(loop), json={"action": "accept", "content": {"count": 2}}
    )

    assert asked["kind"] == "input"
    assert asked["questions"][0]["message"] == "How many?"
    assert [each.status_code for each in refused] == [400] * 5
    assert taken.json()["state"] == "pending"
    (call,) = (await loop.job()).turns[0].calls
    assert orjson.loads(call.answer) == {"who": {"action": "accept", "content": {"count": 2}}}


async def test_a_question_may_be_declined(rig: Rig) -> None:
    loop = await waiting(rig, SEND, approval="never")
    question = orjson.dumps(QUESTION).decode()
    await loop.run(1, 0, "", CallState.AWAITING_INPUT, reason="input", question=question)
    await rig.client.post(place_of(loop), json={"action": "decline"})

    (call,) = (await loop.job()).turns[0].calls
    assert orjson.loads(call.answer) == {"who": {"action": "decline"}}


async def test_a_decision_that_comes_again_gets_the_first_after_the_jobs_end_too(rig: Rig) -> None:
    loop = await waiting(rig, SEND)
    await rig.client.post(place_of(loop), json={"approve": False, "reason": "no"})
    await rig.client.delete(f"/v1/jobs/{loop.job_id}")
    again = await rig.client.post(place_of(loop), json={"approve": True})

    assert (again.status_code, again.json()["state"]) == (200, "denied")


async def test_what_is_not_there_or_not_open_is_refused_by_name(rig: Rig) -> None:
    loop = await waiting(rig, SEND)
    other = await waiting(rig, SEND)
    unknown = f"/v1/jobs/{loop.job_id}/approvals/{approval_item_id(other.job_id, 1, 0)}"
    answers = [
        await rig.client.post(unknown, json={"approve": True}),
        await rig.client.post(place_of(loop, 7), json={"approve": True}),
        await rig.client.post(place_of(loop), json={}),
        await rig.client.post(place_of(loop), json={"approve": True, "arguments": "{}"}),
    ]
    await rig.client.delete(f"/v1/jobs/{other.job_id}")
    answers.append(await rig.client.post(place_of(other), json={"approve": True}))

    assert [each.status_code for each in answers] == [404, 404, 422, 400, 409]
    assert await state_of(loop) is CallState.AWAITING_APPROVAL


async def test_another_tenant_and_a_key_without_the_scope_decide_nothing(
    tool_settings: ApiSettings, store: RedisStore, broker: FakeBroker, redis: Redis
) -> None:
    fields = {"keys_source": "redis", "anonymous_access": AnonymousAccess.OFF}
    policy = {"approvals_by_another_key": True}
    settings = ApiSettings(**(tool_settings.model_dump() | fields | policy))
    scopes = ("jobs:read", "jobs:write", "approvals")
    asking, approving = [await headers_of(redis, "acme", *scopes) for _ in range(2)]
    unable = await headers_of(redis, "acme", *scopes[:2])
    foreign = await headers_of(redis, "other", *scopes)
    async with rig_over(settings, store, broker) as rig:
        loop = await waiting(rig, SEND, headers=asking)
        statuses = [
            (
                await rig.client.post(place_of(loop), json={"approve": True}, headers=each)
            ).status_code
            for each in (unable, foreign, asking, approving)
        ]
        lists = [await rig.client.get("/v1/approvals", headers=each) for each in (foreign, unable)]
        tools = [
            (await rig.client.get("/v1/tools", headers=each)).json() for each in (asking, foreign)
        ]

    assert statuses == [403, 404, 403, 200]
    assert (lists[0].json()["data"], lists[1].status_code) == ([], 403)
    assert [[each["label"] for each in found["data"]] for found in tools] == [
        ["box", "pay"],
        ["box"],
    ]
    assert [found["urls_allowed"] for found in tools] == [True, False]
    assert ".tools" not in str(tools)
    assert "pay-token" not in str(tools)


async def test_a_list_that_changed_is_shown_and_accepted_by_who_has_seen_it(
    redis: Redis, store: RedisStore, broker: FakeBroker, tool_settings: ApiSettings
) -> None:
    async def read(*names: str, tenant: str = "acme", url: str = "http://box.tools/mcp") -> str:
        tools = [PinnedTool(name=f"box__{each}", tool=each, digest=each * 8) for each in names]
        digest = list_digest(tools)
        await RedisToolLists(redis).see(
            tenant,
            "box",
            address=address_digest(url),
            digest=digest,
            tools=kept_tools(tools),
            does_pin=True,
        )
        return digest

    fields = {"keys_source": "redis", "anonymous_access": AnonymousAccess.OFF}
    settings = ApiSettings(**(tool_settings.model_dump() | fields))
    able = await headers_of(redis, "acme", "jobs:read", "approvals")
    unable = await headers_of(redis, "acme", "jobs:read", "jobs:write")
    foreign = await headers_of(redis, "other", "jobs:read", "approvals")
    await read("get", tenant="moved", url="http://elsewhere/")
    moved = await headers_of(redis, "moved", "jobs:read")
    async with rig_over(settings, store, broker) as rig:

        async def shown(headers: dict[str, str]) -> dict[str, Any]:
            found = (await rig.client.get("/v1/tools", headers=headers)).json()["data"]
            return next(each for each in found if each["label"] == "box")

        async def accept(digest: Any, headers: dict[str, str], label: str = "box") -> int:
            path = f"/v1/tools/{label}/accept"
            answer = await rig.client.post(path, json={"digest": digest}, headers=headers)
            return answer.status_code

        assert (await shown(able))["tools"] is None
        assert await accept("x", able) == 404
        first, second = await read("get"), await read("get", "put")
        before = await shown(able)
        assert [tool["name"] for tool in before["tools"]] == ["get", "put"]
        assert (before["digest"], before["pinned_digest"]) == (second, first)
        assert before["changes"] == {"added": ["put"], "changed": [], "removed": []}
        assert [(await shown(each))["tools"] for each in (foreign, moved)] == [None, None]
        third = await read("put")
        assert await accept(second, able) == 409  # another was read meanwhile
        assert [await accept(third, each) for each in (unable, foreign)] == [403, 404]
        assert [await accept(None, able), await accept(third, able, "none")] == [422, 404]
        assert await accept(third, able) == 200
        after = await shown(able)
    assert (after["pinned_digest"], after["changes"]) == (third, None)
    assert after["accepted_by"]


async def test_a_result_that_comes_later_is_taken_once_with_the_token_of_its_call(
    rig: Rig,
) -> None:
    loop = await waiting(rig, SEND, approval="never")
    token = hashlib.sha256(b"t0").hexdigest()
    await loop.run(1, 0, "", CallState.ACCEPTED, handle="h", token_hash=token)
    path = f"/v1/jobs/{loop.job_id}/calls/1.0/result"
    body = {"content": [{"type": "text", "text": "paid"}, {"type": "image", "data": "x"}]}
    found = [
        await rig.client.post(path, json=body, headers={"Torpor-Call-Token": text})
        for text in ("", "t1", "t0", "t0")
    ]
    other = {"content": [{"type": "text", "text": "paid twice"}]}
    late = await rig.client.post(path, json=other, headers={"Torpor-Call-Token": "t0"})
    missing = await rig.client.post(path.replace("1.0", "9.9"), json=body)
    large = {"content": [{"type": "text", "text": "x" * 40_000}]}
    refused = await rig.client.post(path, json=large)

    assert [each.status_code for each in found] == [403, 403, 200, 200]
    assert (found[3].json()["status"], late.status_code) == ("done", 409)
    noted = (await rig.client.get(f"/v1/jobs/{loop.job_id}")).json()["late_results"]
    assert [each["output"] for each in noted] == ["paid twice"]
    assert (missing.status_code, refused.status_code) == (404, 400)
    (call,) = (await loop.job()).turns[0].calls
    assert call.output == "paid\n[image: not shown]"
    assert (await loop.job()).state is JobState.QUEUED


async def test_a_function_says_how_far_it_is_with_the_token_that_its_result_will_carry(
    rig: Rig,
) -> None:
    loop = await waiting(rig, SEND, approval="never")
    token = hashlib.sha256(b"t0").hexdigest()
    await loop.run(1, 0, "", CallState.ACCEPTED, handle="h", token_hash=token)
    path = f"/v1/jobs/{loop.job_id}/calls/1.0/progress"
    body = {"progress": 3, "total": 10, "message": "page 3"}

    async def say(text: str, said: dict[str, Any] = body, to: str = path) -> Any:
        return await rig.client.post(to, json=said, headers={"Torpor-Call-Token": text})

    found = [await say(text) for text in ("", "t1", "t0", "t0")]
    refused = [await say("t0", said) for said in ({}, {"progress": "3"}, {"total": -1})]
    result = {"content": [{"type": "text", "text": "paid"}]}
    taken = await say("t0", result, path.replace("progress", "result"))
    late = await say("t0")

    assert [each.status_code for each in found] == [403, 403, 200, 200]
    assert [each.json()["is_noted"] for each in found[2:]] == [True, False]
    assert [each.status_code for each in (*refused, taken, late)] == [400, 422, 422, 200, 409]
    (call,) = (await loop.job()).turns[0].calls
    assert orjson.loads(call.progress) == body


async def test_receivers_are_told_that_a_person_is_asked_and_has_decided(
    rig: Rig, redis: Redis
) -> None:
    loop = await waiting(rig, SEND)
    told: list[Message] = []

    async def notify(message: Message) -> None:
        told.append(message)

    parts = rig.parts
    notices = ApprovalNotices(
        redis=parts.redis,
        store=parts.store,
        publisher=rig.broker,
        notify=notify,
        clock=parts.clock,
    )
    name = approval_item_id(loop.job_id, 1, 0)
    await notices.sweep()
    await rig.client.post(place_of(loop), json={"approve": False, "reason": "no"})
    await notices.sweep()
    assert await notices.sweep() == 0

    assert [(each.type, each.subject) for each in told] == [
        ("approval.requested", name),
        ("approval.answered", name),
    ]
    events = [each for each in rig.broker.events if each.type.startswith("dev.torpor.approval")]
    for event in events:
        schema = orjson.loads((SCHEMAS / f"{event.type}.json").read_bytes())
        jsonschema.validate(orjson.loads(build_structured(event)[1]), schema)
    data = [orjson.loads(each.data) for each in events]
    assert [(each["tool"], each["state"]) for each in data] == [
        ("send", "awaiting_approval"),
        ("send", "denied"),
    ]
