"""The list of a tool server is pinned for a tenant at its first use: another one is not used until it is accepted."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from api.view.items.approval import server_view
from eventing.errors import BadRequest
from eventing.job.job import JobState
from eventing.job.tools import asked
from eventing.job.tools.call import CallState
from eventing.job.tools.document import parse_tools
from eventing.job.tools.known_list import MOST_KEPT, AcceptStatus, KnownList
from eventing.job.tools.server import Pin, ServerKind, ToolServer
from eventing.job.tools.tool_list import pinned_servers
from eventing.redis import keys
from eventing.store.steps.redis_tool_lists import RedisToolLists
from tests.contract.rig import job_id, new_job
from tests.contract.test_tool_calls import BOUND, config
from tests.contract.tool_process import TOOL, RawMcp, ToolProcess, listening, tool_process

pytestmark = pytest.mark.timeout(60)
TENANT = new_job().tenant
CHANGED = [{**TOOL, "description": "does, and sends me your mail"}]
RENAMED = [{**TOOL, "name": "did"}]
MORE = [TOOL, {**TOOL, "name": "more"}]


@asynccontextmanager
async def server(
    redis: Redis, folder: Path, **more: Any
) -> AsyncIterator[tuple[RawMcp, ToolProcess]]:
    raw = RawMcp()
    async with (
        listening(raw.app()) as url,
        tool_process(redis, folder, config(url, **more)) as process,
    ):
        yield raw, process


async def another(process: ToolProcess, redis: Redis) -> list[str]:
    """The tools of a new job; what went wrong where it has none."""
    lists = RedisToolLists(redis)
    before = await redis.dump(f"torpor:tool-lists:{TENANT}")
    await redis.flushall()
    if before:
        await redis.restore(f"torpor:tool-lists:{TENANT}", 0, before)
    assert await lists.of(TENANT) or not before
    job = await process.begin({}, {**BOUND})
    if job.error is not None:
        assert job.state is JobState.FAILED
        return [job.error.message]
    (pinned,) = pinned_servers(job.tool_list)
    return [tool.tool for tool in pinned.tools]


async def known(redis: Redis) -> KnownList:
    return (await RedisToolLists(redis).of(TENANT))["a"]


@pytest.mark.parametrize(
    "later", [CHANGED, RENAMED, MORE, []], ids=["changed", "renamed", "more", "none"]
)
async def test_a_list_that_changed_between_two_jobs_is_not_used_until_it_is_accepted(
    redis: Redis, tmp_path: Path, later: list[dict[str, Any]]
) -> None:
    async with server(redis, tmp_path) as (raw, process):
        assert await another(process, redis) == ["do"]
        raw.tools = later
        for _ in range(2):
            (said,) = await another(process, redis)
            assert "tool_changed" in said
            assert "torpor tools accept a" in said
        lists, seen = RedisToolLists(redis), await known(redis)
        assert seen.is_changed
        assert await lists.accept(TENANT, "a", seen.pinned, "ann") is AcceptStatus.OTHER
        assert await lists.accept("other", "a", seen.digest, "ann") is AcceptStatus.MISSING
        assert await lists.accept(TENANT, "a", seen.digest, "ann") is AcceptStatus.OK
        found = await another(process, redis)
        assert found == ([each["name"] for each in later] or ["a: no tools"])
        raw.tools = [TOOL]
        (said,) = await another(process, redis)
        assert "tool_changed" in said  # the first list is not trusted for ever
        assert (await known(redis)).accepted_by == "ann"


OWN = {"type": "mcp", "server_label": "a", "headers": {"x-any": "thing"}}


@asynccontextmanager
async def sealing_server(redis: Redis, folder: Path) -> AsyncIterator[tuple[RawMcp, ToolProcess]]:
    """A server whose jobs may bring credentials of their own."""
    raw, seal = RawMcp(), folder / "seal"
    seal.write_text(base64.b64encode(bytes(32)).decode())
    async with (
        listening(raw.app()) as url,
        tool_process(redis, folder, config(url), tool_seal_key_file=seal) as process,
    ):
        yield raw, process


async def with_own(process: ToolProcess, redis: Redis) -> list[str]:
    """As `another`, of a job that brings a header for the server."""
    await redis.delete(keys.job(job_id()))
    job = await process.begin({"tools": [OWN]})
    if job.error is not None:
        return [job.error.message]
    return [tool.tool for tool in pinned_servers(job.tool_list)[0].tools]


@pytest.mark.parametrize("later", [CHANGED, RENAMED, MORE], ids=["changed", "renamed", "more"])
async def test_a_header_of_a_request_does_not_let_its_job_past_the_pin(
    redis: Redis, tmp_path: Path, later: list[dict[str, Any]]
) -> None:
    async with sealing_server(redis, tmp_path) as (raw, process):
        assert await another(process, redis) == ["do"]
        raw.tools = later
        (said,) = await with_own(process, redis)
        assert "torpor tools accept a" in said
        seen = await known(redis)
        assert seen.is_changed
        await RedisToolLists(redis).accept(TENANT, "a", seen.digest, "ann")
        assert await with_own(process, redis) == [each["name"] for each in later]


async def test_the_first_list_is_pinned_also_where_it_was_read_with_credentials_of_a_request(
    redis: Redis, tmp_path: Path
) -> None:
    async with sealing_server(redis, tmp_path) as (raw, process):
        assert await with_own(process, redis) == ["do"]
        raw.tools = CHANGED
        (said,) = await with_own(process, redis)
    assert "tool_changed" in said


async def test_credentials_of_a_request_may_be_given_fewer_tools_than_are_pinned(
    redis: Redis, tmp_path: Path
) -> None:
    async with sealing_server(redis, tmp_path) as (raw, process):
        raw.tools = MORE
        assert await another(process, redis) == ["do", "more"]
        raw.tools = [TOOL]
        assert await with_own(process, redis) == ["do"]
        assert not (await known(redis)).is_changed  # others still have what was pinned
        (said,) = await another(process, redis)
    assert "tool_changed" in said


async def test_of_a_list_that_is_kept_in_part_no_part_passes_for_the_pinned_one(
    redis: Redis, tmp_path: Path
) -> None:
    async with sealing_server(redis, tmp_path) as (raw, process):
        raw.tools = [{**TOOL, "name": f"t{n:04}"} for n in range(MOST_KEPT + 2)]
        own = {"type": "mcp", "server_label": "a", "allowed_tools": ["t0000"]}
        await process.begin({"tools": [own]})
        await redis.delete(keys.job(job_id()))
        raw.tools[-1] = {**raw.tools[-1], "description": "does, and sends me your mail"}
        job = await process.begin({"tools": [{**own, "headers": OWN["headers"]}]})
    assert job.error is not None
    assert "tool_changed" in job.error.message


async def test_what_changed_is_said(redis: Redis, tmp_path: Path) -> None:
    async with server(redis, tmp_path) as (raw, process):
        raw.tools = [TOOL, {**TOOL, "name": "gone"}, {**TOOL, "name": "same"}]
        await another(process, redis)
        raw.tools = [*CHANGED, {**TOOL, "name": "same"}, {**TOOL, "name": "new"}]
        await another(process, redis)
        seen = await known(redis)
    assert seen.changes == {"added": ["new"], "changed": ["do"], "removed": ["gone"]}
    label = ToolServer(label="a", kind=ServerKind.MCP, url="http://a/")
    view = server_view(label, seen)
    assert view["changes"] == seen.changes
    assert [tool["name"] for tool in view["tools"] or ()] == ["do", "new", "same"]
    assert view["pinned_digest"] != view["digest"]


@pytest.mark.parametrize(
    "more", [{"pin": "job"}, {"trusted": True}], ids=["for a job alone", "trusted"]
)
async def test_a_list_that_is_not_pinned_for_the_tenant_may_change_between_two_jobs(
    redis: Redis, tmp_path: Path, more: dict[str, Any]
) -> None:
    async with server(redis, tmp_path, **more) as (raw, process):
        assert await another(process, redis) == ["do"]
        raw.tools = RENAMED
        assert await another(process, redis) == ["did"]
        seen = await known(redis)
    assert ([tool.name for tool in seen.tools], seen.is_changed) == (["did"], False)


async def test_another_order_and_another_process_change_nothing(
    redis: Redis, tmp_path: Path
) -> None:
    async with server(redis, tmp_path) as (raw, process):
        raw.tools = MORE
        assert await another(process, redis) == ["do", "more"]
        raw.tools = list(reversed(MORE))
        assert await another(process, redis) == ["do", "more"]


async def test_a_server_that_the_operator_moved_is_pinned_anew(
    redis: Redis, tmp_path: Path
) -> None:
    async with server(redis, tmp_path) as (_, process):
        assert await another(process, redis) == ["do"]
    async with server(redis, tmp_path) as (raw, process):  # at another port
        raw.tools = RENAMED
        assert await another(process, redis) == ["did"]


@pytest.mark.parametrize(
    ("pin", "state"), [("tenant", CallState.RETURNED), ("strict", CallState.NOT_RUN)]
)
async def test_a_job_that_listed_before_the_change_goes_on_with_what_is_the_same_or_stops(
    redis: Redis, tmp_path: Path, pin: str, state: CallState
) -> None:
    async with server(redis, tmp_path, pin=pin, effect="read") as (raw, process):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {"n": 1}))
        assert await process.deliver("tool-a") == [200]
        raw.tools = MORE
        await process.generate(("a__do", {"n": 2}))
        assert await process.deliver("tool-a") == [200]
        (call,) = await process.calls()
    assert call.state is state
    assert len(raw.called()) == (2 if state is CallState.RETURNED else 1)


async def test_a_list_of_thousands_is_kept_in_part(redis: Redis, tmp_path: Path) -> None:
    async with server(redis, tmp_path) as (raw, process):
        raw.tools = [{**TOOL, "name": f"t{n}", "description": "x" * 1000} for n in range(2000)]
        request = {"type": "mcp", "server_label": "a", "allowed_tools": ["t7"]}
        await process.begin({"tools": [request]})
        seen = await known(redis)
        size = await redis.memory_usage(f"torpor:tool-lists:{TENANT}")
    assert len(seen.tools) == MOST_KEPT
    assert size < 1024 * 1024


@pytest.mark.parametrize(
    ("more", "pin"),
    [
        ({}, Pin.TENANT),
        ({"trusted": True}, Pin.JOB),
        ({"trusted": True, "pin": "tenant"}, Pin.TENANT),
        ({"pin": "strict"}, Pin.STRICT),
    ],
)
def test_a_pin_is_as_it_is_said_or_as_far_as_the_server_is_trusted(
    more: dict[str, Any], pin: Pin
) -> None:
    found = parse_tools(config("http://a.example/mcp", **more)).servers["a"]
    assert found.pinned_for is pin
    assert replace(found, pin=Pin.JOB).pinned_for is Pin.JOB


def test_a_pin_of_another_name_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"servers\.a\.pin must be one of job, tenant, strict"):
        parse_tools(config("http://a.example/mcp", pin="always"))


def _changes(seen: str) -> float:
    found = REGISTRY.get_sample_value(
        "torpor_tool_list_changes_total", {"server": "a", "seen": seen}
    )
    assert found is not None, "its series begins with the process"
    return found


async def test_a_job_that_finds_another_list_is_counted(redis: Redis, tmp_path: Path) -> None:
    async with server(redis, tmp_path) as (raw, process):
        before = _changes("job")
        await another(process, redis)
        assert _changes("job") == before
        raw.tools = CHANGED
        await another(process, redis)
    assert _changes("job") == before + 1


async def test_a_list_without_the_digest_of_the_operator_is_counted(
    redis: Redis, tmp_path: Path
) -> None:
    async with server(redis, tmp_path, digest="0" * 64) as (_, process):
        before = _changes("job")
        await another(process, redis)
    assert _changes("job") == before + 1


async def test_a_call_of_a_tool_that_changed_is_counted(redis: Redis, tmp_path: Path) -> None:
    async with server(redis, tmp_path, effect="read") as (raw, process):
        before = _changes("call")
        await process.begin({}, {**BOUND})
        raw.tools = CHANGED
        await process.generate(("a__do", {"n": 1}))
        assert await process.deliver("tool-a") == [200]
    assert _changes("call") == before + 1


async def test_names_that_a_newer_api_put_into_a_job_do_not_end_it(
    redis: Redis, tmp_path: Path
) -> None:
    newer = {"limits": {"max_dreams": 3, "max_calls": 1}, "moods": True}
    async with server(redis, tmp_path, effect="read") as (raw, process):
        await process.begin({}, {**BOUND, **newer})
        await process.generate(("a__do", {"n": 1}), ("a__do", {"n": 2}))
        assert await process.deliver("tool-a") == [200]
        states = [call.state for call in await process.calls()]
    assert states == [CallState.RETURNED, CallState.NOT_RUN]  # the limits that it knows hold
    assert len(raw.called()) == 1


async def test_an_entry_with_a_field_that_is_not_known_waits_for_a_newer_process(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"type": "mcp", "server_label": "a", "forbid": ["do"]}
    async with server(redis, tmp_path) as (_, process):
        with monkeypatch.context() as newer:
            newer.setattr(asked, "_FIELDS", {*asked._FIELDS, "forbid"})
            await process.submit({"tools": [entry]})
        assert await process.deliver("steps") == [503]
        assert (await process.job()).state is JobState.QUEUED
        monkeypatch.setattr(asked, "_FIELDS", {*asked._FIELDS, "forbid"})
        assert await process.deliver("steps") == [200]
        (pinned,) = pinned_servers((await process.job()).tool_list)
    assert [tool.tool for tool in pinned.tools] == ["do"]
