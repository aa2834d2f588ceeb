"""Runners that die, stall or meet: no line of a batch is lost, run or told twice."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import orjson
import pytest
from redis.asyncio import Redis

from api.auth.principal import Principal
from api.batch import run as batch_run
from api.batch import runner as batch_runner
from api.batch import store as batch_store
from api.batch.batch import Batch, BatchStatus
from api.batch.store import BatchStore
from api.job.submission import keyed_job_id, submit_line
from eventing.job.job import JobId
from eventing.redis import keys
from eventing.store.file_store import FileCard, FileStore
from tests.integration.api.batch_rig import (
    FINAL,
    LateClock,
    adds_up,
    ended,
    entries,
    lines,
    look,
    put_back,
    running,
    start,
    time_passes,
    told,
)
from tests.integration.api.conftest import Rig, chat_line
from tests.integration.api.fakes import FakeEngine, FakePredictor, chat_result


async def test_a_runner_that_waits_reads_no_prompt_and_no_answer(rig: Rig) -> None:
    megabyte = 1024 * 1024
    line = chat_line("x" * (megabyte - 1000), custom_id="c1")
    await start(rig, orjson.dumps(line))
    redis = rig.store.redis
    async with running(rig), asyncio.timeout(60):
        while not (jobs := (await rig.store.list_jobs("default")).jobs):
            await asyncio.sleep(0.02)
        key = keys.job(jobs[0].id)
        while not await polls(redis):
            await asyncio.sleep(0.02)
        before = int((await redis.info("stats"))["total_net_output_bytes"])
        asked = await polls(redis)
        while await polls(redis) < asked + 5:
            await asyncio.sleep(0.02)
        after = int((await redis.info("stats"))["total_net_output_bytes"])

    assert int(await redis.hstrlen(key, "request")) > megabyte // 2
    assert after - before < megabyte


async def polls(redis: Redis) -> int:
    """How often one field of a record was read."""
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_hget", {"calls": 0})["calls"])


async def test_a_validation_that_takes_longer_than_a_claim_is_not_overtaken(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim of 0.3 s, a validation of 1.5 s, and two runners that would take it."""
    monkeypatch.setattr(batch_store, "CLAIM_MS", 300)
    monkeypatch.setattr(batch_runner, "CLAIM_MS", 300)
    monkeypatch.setattr("api.batch.input_file._READ_BYTES", 64)
    read = FileStore.read

    async def slow(self: FileStore, card: FileCard, start: int, size: int) -> bytes:
        await asyncio.sleep(0.1)
        return await read(self, card, start, size)

    epochs: set[int] = set()
    save = BatchStore.save

    async def noted(self: BatchStore, batch: Batch, epoch: int) -> bool:
        epochs.add(epoch)
        return await save(self, batch, epoch)

    monkeypatch.setattr(FileStore, "read", slow)
    monkeypatch.setattr(BatchStore, "save", noted)
    batch_id = await start(rig, lines(5))
    async with running(rig), running(rig):
        batch = await ended(rig, batch_id)

    assert (batch["status"], len(epochs)) == ("completed", 1)


async def test_a_cancelled_batch_whose_runner_died_is_ended_with_all_that_it_had_submitted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner dies after it submitted lines and before it could write so."""
    save = BatchStore.save

    async def dies(self: BatchStore, batch: Batch, epoch: int) -> bool:
        if batch.running:
            await asyncio.sleep(3600)
        return await save(self, batch, epoch)

    batch_id = await start(rig, lines(4))
    with monkeypatch.context() as patched:
        patched.setattr(BatchStore, "save", dies)
        async with running(rig):
            async with asyncio.timeout(60):
                while not rig.broker.events:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
    submitted = [event.subject for event in rig.broker.events]
    record = await rig.parts.batches.batches.get(batch_id)
    await rig.client.post(f"/v1/batches/{batch_id}/cancel")
    await time_passes(rig)
    async with running(rig):
        batch = await ended(rig, batch_id)

    states = [(await rig.client.get(f"/v1/jobs/{each}")).json()["state"] for each in submitted]
    assert record.running == ()
    assert set(states) == {"cancelled"}
    assert batch["status"] == "cancelled"
    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 5))


async def test_a_cancelled_batch_says_of_each_line_what_became_of_it(rig: Rig) -> None:
    batch_id = await start(rig, lines(5))
    async with running(rig):
        while len(rig.broker.events) < 5:
            await asyncio.sleep(0.01)
        done = keyed_job_id("default", f"batch:{batch_id}:1")
        await (await rig.predictor(done)).finish(chat_result("one"))
        broken = keyed_job_id("default", f"batch:{batch_id}:2")
        await (await rig.predictor(broken)).fail("boom")
        await rig.client.post(f"/v1/batches/{batch_id}/cancel")
        batch = await ended(rig, batch_id)

    output = await entries(rig, batch["output_file_id"])
    errors = await entries(rig, batch["error_file_id"])
    assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
    assert [entry["custom_id"] for entry in output] == ["c1"]
    codes = {e["custom_id"]: e["error"] and e["error"]["code"] for e in errors}
    assert codes == {"c2": None} | dict.fromkeys(("c3", "c4", "c5"), "batch_cancelled")


async def test_a_runner_that_was_overtaken_at_the_very_end_changes_no_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stalls before its files are there. Meanwhile one that stalled longer submits a line, and
    that is answered; the next runner must not tell of it what the files of the first do not.
    """
    stalled, go_on, publish = asyncio.Event(), asyncio.Event(), FileStore.publish

    async def stalls(self: FileStore, card: FileCard) -> None:
        if not stalled.is_set():
            stalled.set()
            await go_on.wait()
        await publish(self, card)

    monkeypatch.setattr(FileStore, "publish", stalls)
    batch_id = await start(rig, lines(3))
    await rig.client.post(f"/v1/batches/{batch_id}/cancel")
    async with running(rig):
        async with asyncio.timeout(60):
            await stalled.wait()
        late = orjson.loads(lines(2).splitlines()[1])
        job = await submit_line(
            rig.parts.submission,
            Principal(tenant="default"),
            late,
            key=f"{batch_id}:2",
            metadata={},
        )
        await (await rig.predictor(job.id)).finish(chat_result("late"))
        await time_passes(rig)
        async with running(rig):
            batch = await ended(rig, batch_id)
        go_on.set()
        await asyncio.sleep(0.2)  # the first one writes what it can

    assert batch["status"] == "cancelled"
    assert await told(rig, batch) == Counter(["c1", "c2", "c3"])
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 3}


async def test_a_runner_that_stops_at_once_goes_on_behind_the_record(rig: Rig) -> None:
    """A second runner, of a batch that has run out of its time with two lines told before."""
    batch_id = await start(rig, lines(5))
    batches = rig.parts.batches.batches
    ((_, epoch),) = await batches.claim(1)
    record = await batches.get(batch_id)
    end = len(b"\n".join(lines(5).splitlines()[:2])) + 1
    await batches.save(
        replace(record, status=BatchStatus.IN_PROGRESS, line=2, offset=end, total=5, failed=2),
        epoch,
    )
    await time_passes(rig)
    async with running(rig, LateClock()):
        batch = await ended(rig, batch_id)

    assert await told(rig, batch) == Counter(["c3", "c4", "c5"])
    assert batch["request_counts"]["failed"] == 5


async def test_an_expiry_whose_runners_die_reports_each_line_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "WINDOW", 10)
    draw, save = random.Random(3), BatchStore.save

    async def may_die(self: BatchStore, batch: Batch, epoch: int) -> bool:
        if draw.random() < 0.3:
            raise asyncio.CancelledError  # before the record was written
        is_ours = await save(self, batch, epoch)
        if draw.random() < 0.2:
            raise asyncio.CancelledError  # and after
        return is_ours

    batch_id = await start(rig, lines(80))
    monkeypatch.setattr(BatchStore, "save", may_die)
    async with running(rig, LateClock()), asyncio.timeout(40):
        while (await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
            await time_passes(rig)
    monkeypatch.setattr(BatchStore, "save", save)

    batch = await look(rig, batch_id)
    assert batch["status"] == "expired"
    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 81))
    assert batch["request_counts"] == {"total": 80, "completed": 0, "failed": 80}


async def test_a_batch_whose_runners_die_all_the_time_answers_each_line_once(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, save = random.Random(4), BatchStore.save

    async def may_die(self: BatchStore, batch: Batch, epoch: int) -> bool:
        if draw.random() < 0.15:
            raise asyncio.CancelledError
        is_ours = await save(self, batch, epoch)
        if draw.random() < 0.15:
            raise asyncio.CancelledError
        return is_ours

    batch_id = await start(rig, lines(60) + b"\n{bad\n" + lines(1))
    monkeypatch.setattr(BatchStore, "save", may_die)
    async with running(rig), running(rig), asyncio.timeout(40):
        while (await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
            await time_passes(rig)
    monkeypatch.setattr(BatchStore, "save", save)

    batch = await look(rig, batch_id)
    output = await entries(rig, batch["output_file_id"])
    errors = await entries(rig, batch["error_file_id"])
    assert batch["status"] == "completed"
    assert Counter(e["custom_id"] for e in output) == Counter(f"c{n}" for n in range(1, 61))
    assert [entry["error"]["line"] for entry in errors] == [61, 62]
    assert adds_up(batch, output, errors)
    assert len({job.id for job in engine.played}) == 60


async def test_a_batch_whose_store_forgets_its_last_saves_answers_each_line_once(
    rig: Rig, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover to a replica that lags, and runners that do not know of it."""
    monkeypatch.setattr(batch_run, "WINDOW", 5)
    draw, save = random.Random(1), BatchStore.save
    older: list[dict[bytes, bytes]] = []

    async def forgets(self: BatchStore, batch: Batch, epoch: int) -> bool:
        name, redis = keys.batch(batch.id), rig.store.redis
        older.append(await redis.hgetall(name))
        is_ours = await save(self, batch, epoch)
        if len(older) > 3 and draw.random() < 0.2 and not batch.status.is_final:
            await put_back(redis, name, older[-draw.randint(1, 3)])
            if draw.random() < 0.5:
                raise asyncio.CancelledError
        return is_ours

    batch_id = await start(rig, lines(60))
    monkeypatch.setattr(BatchStore, "save", forgets)
    async with running(rig), running(rig), asyncio.timeout(40):
        while (await look(rig, batch_id))["status"] not in FINAL:
            await asyncio.sleep(0.05)
            await time_passes(rig)
    monkeypatch.setattr(BatchStore, "save", save)

    batch = await look(rig, batch_id)
    assert batch["status"] == "completed"
    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 61))
    assert batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    assert len({job.id for job in engine.played}) == 60


async def submitted(rig: Rig, batch_id: str) -> list[JobId]:
    """The jobs of five lines, once the runner has noted them."""
    async with asyncio.timeout(60):
        while len((record := await rig.parts.batches.batches.get(batch_id)).running) < 5:
            await asyncio.sleep(0.02)
    return [JobId(one.job_id) for one in record.running]


async def forget(rig: Rig, jobs: Sequence[JobId]) -> None:
    """What a failover takes while the runner lives: it goes on with the names of jobs that nobody knows."""
    for job_id in jobs:
        await rig.store.redis.delete(keys.job(job_id), keys.tokens(job_id))


async def test_lines_whose_jobs_the_store_forgot_are_run_again(rig: Rig) -> None:
    batch_id = await start(rig, lines(5))
    async with running(rig), asyncio.TaskGroup() as group:
        jobs = await submitted(rig, batch_id)
        engine = FakeEngine(rig.store, rig.broker, group)
        await forget(rig, jobs[:2])
        for job_id in jobs[2:]:
            await (await FakePredictor(rig.store, job_id).start()).finish(chat_result("there"))
        batch = await ended(rig, batch_id)

    assert await told(rig, batch) == Counter(f"c{n}" for n in range(1, 6))
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert {job.id for job in engine.played} == set(jobs[:2])


async def test_lines_whose_jobs_are_gone_with_the_input_file_are_told_so(rig: Rig) -> None:
    batch_id = await start(rig, lines(5))
    async with running(rig):
        jobs = await submitted(rig, batch_id)
        await rig.client.delete(f"/v1/files/{(await look(rig, batch_id))['input_file_id']}")
        await forget(rig, jobs)
        batch = await ended(rig, batch_id)

    errors = await entries(rig, batch["error_file_id"])
    assert [entry["error"]["code"] for entry in errors] == ["result_expired"] * 5
