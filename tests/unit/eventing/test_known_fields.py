"""Every reader of a record takes one with a field that only a newer version knows."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest

from api.batch.batch import Batch, Running, parse_batch
from api.webhook import store as webhook_store
from api.webhook.webhook import Endpoint, Secret
from eventing.api_key import FileKeys, RedisKeys, mint
from eventing.cloudevent.result_event import ending_of, result_event
from eventing.errors import NewerRecord
from eventing.job.job import AttemptRecord, Job, JobError, JobId, JobRequest, JobState, Lane
from eventing.job.stream import EntryKind, calls_of
from eventing.job.tools.call import CallState
from eventing.known_fields import VERSION, known_fields
from eventing.redis.stream_entry import parse_flat_entry
from eventing.store.file_store import FileCard, FileStore
from eventing.store.job_record.parse import parse_job

MORE = {"of_tomorrow": 1}
JOB_ID = JobId(f"job_{'0' * 24}")
RECORD = {
    b"state": b"failed",
    b"request": JobRequest(url="/v1/completions", body={"model": "m"}).to_json(),
    b"tenant": b"acme",
    b"lane": b"default",
    b"source": b"/s",
    b"event_id": b"1",
    b"history": orjson.dumps([{"attempt": 1, "owner": "w", "started_ms": 5} | MORE]),
    b"error": orjson.dumps({"code": "c", "message": "m", "field": ""} | MORE),
    b"of_tomorrow": b"1",
}


def test_a_job_with_an_unknown_field_is_read() -> None:
    job = parse_job(JOB_ID, RECORD)

    assert job is not None
    assert job.history == (AttemptRecord(attempt=1, owner="w", started_ms=5),)
    assert job.error == JobError(code="c", message="m")


def test_a_jobs_lane_that_is_not_known_is_the_default() -> None:
    job = parse_job(JOB_ID, RECORD | {b"lane": b"express"})

    assert job is not None
    assert job.lane is Lane.DEFAULT


@pytest.mark.parametrize("more", [{b"v": b"2"}, {b"state": b"paused"}])
def test_a_job_that_means_something_else_is_refused_as_newer(more: dict[bytes, bytes]) -> None:
    with pytest.raises(NewerRecord):
        parse_job(JOB_ID, RECORD | more)


@pytest.mark.parametrize(
    ("flat", "kind"),
    [
        ([b"kind", b"heartbeat", b"attempt", b"1"], EntryKind.OTHER),
        ([b"kind", b"state", b"state", b"paused"], EntryKind.STATE),
        (
            [b"kind", b"attempt", b"attempt", b"1", b"index", b"0", b"of_tomorrow", b"1"],
            EntryKind.ATTEMPT,
        ),
    ],
)
def test_an_entry_of_a_token_stream_with_an_unknown_field_is_read(
    flat: list[bytes], kind: EntryKind
) -> None:
    entry = parse_flat_entry(b"1-1", flat)

    assert (entry.kind, entry.state) == (kind, None)


def test_entries_of_a_turn_and_of_its_calls_with_unknown_fields_are_read() -> None:
    calls = b'[{"place":0,"name":"web__fetch"}]'
    turn = [b"kind", b"turn", b"turn", b"2", b"attempt", b"3", b"index", b"40", b"calls", calls]
    named = {b"kind": b"call", b"turn": b"2", b"place": b"1", b"status": b"returned", b"ms": b"9"}
    call = [part for pair in named.items() for part in pair]

    committed, returned = (parse_flat_entry(b"1-1", each) for each in (turn, call))

    assert (committed.kind, committed.turn, committed.index) == (EntryKind.TURN, 2, 40)
    assert calls_of(committed) == [{"place": 0, "name": "web__fetch"}]
    assert (returned.place, returned.call_state, returned.call_ms) == (1, CallState.RETURNED, 9)


def test_a_call_in_a_state_that_is_not_known_has_none() -> None:
    entry = parse_flat_entry(b"1-1", [b"kind", b"call", b"turn", b"1", b"status", b"paused"])

    assert (entry.kind, entry.call_state) == (EntryKind.CALL, None)


def test_a_result_event_with_an_unknown_field_is_read() -> None:
    job = Job(
        id=JOB_ID,
        state=JobState.FAILED,
        request=JobRequest(url="/v1/completions", body={"model": "m"}),
        error=JobError(code="c", message="m"),
    )
    event = result_event(job)
    assert event.data is not None
    data = orjson.loads(event.data)
    data["error"] |= MORE
    newer = type(event)(
        **{name: getattr(event, name) for name in event.__dataclass_fields__}
        | {"data": orjson.dumps(data | MORE)}
    )

    assert ending_of(newer)[1].error == job.error


def test_a_batch_with_an_unknown_field_is_read() -> None:
    batch = Batch(
        id="batch_1",
        tenant="acme",
        endpoint="/v1/completions",
        input_file_id="file_1",
        output_file_id="file_2",
        error_file_id="file_3",
        created_at=1,
    )
    record = orjson.loads(batch.to_json())
    running = {name: 1 for name in Running.__dataclass_fields__}
    record["running"] = [running | MORE]

    assert parse_batch(orjson.dumps(record | MORE)).running == (Running(**running),)  # type: ignore[arg-type]


def test_a_webhooks_receiver_with_an_unknown_field_is_read() -> None:
    endpoint = Endpoint(id="e", tenant="acme", url="https://a", secrets=(Secret(text="whsec_x"),))
    record = asdict(endpoint) | MORE
    record["secrets"] = [record["secrets"][0] | MORE]

    assert webhook_store._endpoint("acme", orjson.dumps(record)) == endpoint


def test_a_webhooks_delivery_with_an_unknown_field_is_read() -> None:
    tried = {"at_ms": 1, "status": 200, "error": "", "duration_ms": 3}
    row = {name: b"x" for name in (b"tenant", b"endpoint", b"url", b"type", b"subject", b"body")}
    row |= {b"created_ms": b"1", b"state": b"delivered", b"tries": b"1", b"of_tomorrow": b"1"}
    row[b"try:1"] = orjson.dumps(tried | MORE)

    delivery = webhook_store._parse("d", row)

    assert delivery is not None
    assert delivery.log[0].status == 200


async def test_a_file_card_with_an_unknown_field_is_read(tmp_path: Path) -> None:
    files = FileStore(f"file://{tmp_path}")
    card = FileCard(
        id=f"file-{'0' * 24}", tenant="acme", filename="f", purpose="batch", bytes=1, created_at=1
    )
    folder = Path(files._folder("acme", card.id))
    folder.mkdir(parents=True)
    (folder / "meta.json").write_bytes(orjson.dumps(asdict(card) | MORE))

    assert files._read_card("acme", card.id) == card


class OneKey:
    """A Redis that has one record."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    async def hget(self, name: str, key: str) -> bytes:
        return self._raw


async def test_an_api_key_of_the_store_is_read_without_the_scopes_that_we_do_not_know() -> None:
    key, _ = mint("acme", now_s=1, scopes=["jobs:read"])
    record = asdict(key) | {"scopes": ["jobs:read", "jobs:of_tomorrow"]} | MORE

    assert await RedisKeys(OneKey(orjson.dumps(record))).find(key.id) == key  # type: ignore[arg-type]


async def test_an_api_key_of_a_file_with_an_unknown_field_is_read(tmp_path: Path) -> None:
    key, _ = mint("acme", now_s=1)
    path = tmp_path / "keys.json"
    path.write_bytes(orjson.dumps([asdict(key) | MORE]))

    assert await FileKeys(path).find(key.id) == key


@pytest.mark.parametrize("kind", [JobError, AttemptRecord, Batch, Endpoint, FileCard])
def test_a_record_of_a_version_that_means_something_else_is_refused(
    kind: Callable[..., Any],
) -> None:
    with pytest.raises(NewerRecord):
        known_fields(kind, {"v": VERSION + 1})  # type: ignore[arg-type]
