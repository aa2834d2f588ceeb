"""F09 to F11, F13, F14, F30, F31: duplicates, lost answers, poison, and a pod that ends as events
come.
"""

import asyncio
import random
import signal
import time
from io import BytesIO
from pathlib import Path

import aiohttp
import orjson
import pytest

from eventing.cloudevent.event import Event, build_binary
from eventing.cloudevent.job_event import REQUESTED
from eventing.job.job import derive_job_id
from tests.faults.client import body
from tests.faults.conftest import Judge, rounds
from tests.faults.history import Kind
from tests.faults.processes import System, running
from tests.faults.programs import Tuning, Zygote, port_of
from tests.faults.proxy import Way

pytestmark = pytest.mark.timeout(600)


async def deliver(port: int, event: Event) -> tuple[int, float]:
    """Status and seconds of a delivery straight to a predictor."""
    headers, content = build_binary(event)
    began_s = time.monotonic()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/", data=BytesIO(content), headers=headers) as answer,
    ):
        await answer.read()
        return answer.status, time.monotonic() - began_s


def request(number: int, *, tokens: int = 12) -> Event:
    return Event(
        id=str(number),
        source="/tests/faults",
        type=REQUESTED,
        datacontenttype="application/json",
        data=orjson.dumps(body(number, tokens=tokens)),
    )


async def test_f09_duplicates_at_once_and_after_the_end_run_once(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path) as system:
        port = port_of(system.predictor)
        for number in range(many):
            event = request(number)
            answers = await asyncio.gather(*(deliver(port, event) for _ in range(10)))
            assert {status for status, _ in answers} <= {200, 409}
            assert [status for status, _ in answers].count(200) >= 1
            system.history.add(
                Kind.OK, "submit", job_id=derive_job_id("/tests/faults", str(number))
            )
        late = [await deliver(port, request(number % many)) for number in range(10 * many)]

        assert {status for status, _ in late} == {200}
        found = (await system.dumped()).jobs
        assert [len(job.attempts) for job in found.values()] == [1] * many
        await judge(system, many, of="jobs delivered 20 times each")


async def test_f10_a_redelivery_to_a_running_job_is_409(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, Tuning(tokens_per_s=20)) as system:
        port = port_of(system.predictor)
        for numbers in rounds(many, 30):
            events = [request(n, tokens=40) for n in numbers]
            first = [asyncio.ensure_future(deliver(port, event)) for event in events]
            await system.started(derive_job_id(event.source, event.id) for event in events)
            again = await asyncio.gather(*(deliver(port, event) for event in events))

            assert [status for status, _ in again] == [409] * len(events)
            ended = await asyncio.gather(*first)
            assert [status for status, _ in ended] == [200] * len(events)
        found = (await system.dumped()).jobs
        assert [len(job.attempts) for job in found.values()] == [1] * many
        await judge(system, many, of="redeliveries")


async def test_f11_an_answer_lost_on_the_wire_runs_nothing_twice(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path) as system:
        jobs = []
        for number in range(many):
            hold = system.delivery.hold(b"HTTP/1.1 200", Way.DOWN)
            jobs.append(await system.client.submit(body(number), f"job-{number}"))
            await asyncio.wait_for(hold.reached.wait(), 30)
            hold.is_dropped = True
            system.delivery.cut()
            hold.released.set()
            system.history.add(Kind.FAULT, "cut", what="answer")
        await system.ended(jobs, within_s=60)

        found = (await system.dumped()).jobs
        assert [len(job.attempts) for job in found.values()] == [1] * many
        await judge(system, many, of="lost answers")


async def test_f13_jobs_that_kill_their_worker_end_and_those_beside_them_do_not(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    deaths = 0
    async with running(zygote, tmp_path, Tuning(lease_s=1, tokens_per_s=200)) as system:
        for numbers in rounds(trials, 20):
            lines = [(body(n), f"sibling-{n}-{m}") for n in numbers for m in range(3)]
            siblings = [system.client.submit(*line) for line in lines]
            poisons = [
                system.client.submit(
                    body(n, tokens=20, process_dies_at=5), f"poison-{n}", is_poison=True
                )
                for n in numbers
            ]
            jobs = await asyncio.gather(*poisons, *siblings)
            ended = asyncio.ensure_future(system.ended(jobs, within_s=150))
            while not ended.done():
                if not system.predictor.is_alive:
                    deaths += 1
                    system.predictor.start()  # it may die again before anybody could see it ready
                await asyncio.sleep(0.02)
            states = (await system.dumped()).jobs
            lost = {states[job_id].attempts for job_id in jobs[: len(numbers)]}
            assert lost == {("lost",) * system.tuning.max_attempts}

        assert deaths <= system.tuning.max_attempts * trials
        await judge(system, trials, of=f"poison jobs, {3 * trials} siblings, {deaths} deaths")


async def test_f14_what_raises_each_time_or_is_no_job_is_a_dead_letter(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path) as system:
        broker = port_of(system.broker)
        jobs = []
        for number in range(many):
            line = body(number, fail_at=3)
            jobs.append(await system.client.submit(line, f"raises-{number}", is_poison=True))
            for kind, data in (("schema", b'{"url": 1}'), ("json", b"{no"), ("bytes", b"\xff")):
                event_id = f"{kind}-{number}"
                bad = Event(id=event_id, source="/tests/faults", type=REQUESTED, data=data)
                assert (await deliver(broker, bad))[0] == 202
                job_id = derive_job_id("/tests/faults", event_id)
                system.history.add(Kind.OK, "submit", job_id=job_id, is_poison=True)
                jobs.append(job_id)
        huge = Event(id="huge", source="/tests/faults", type=REQUESTED, data=b"x" * 10 * 2**20)
        assert (await deliver(broker, huge))[0] == 413
        await system.ended(jobs, within_s=60)

        found = (await system.dumped()).jobs
        attempts = {len(found[job_id].attempts) for job_id in jobs[::4]}
        assert attempts == {system.tuning.max_attempts}
        await judge(system, many * 4, of="poison events")


async def test_f30_a_dead_letter_sink_that_is_away_loses_none(
    zygote: Zygote, tmp_path: Path, many: int, judge: Judge
) -> None:
    async with running(zygote, tmp_path, Tuning(sink="http://127.0.0.1:1/")) as system:
        lines = [(body(n, fail_at=2), f"raises-{n}") for n in range(many)]
        jobs = await asyncio.gather(
            *(system.client.submit(line, key, is_poison=True) for line, key in lines)
        )
        await system.ended(jobs, within_s=60)

        await judge(system, many, of="dead letters")


async def test_f31_events_that_come_as_the_last_pod_ends_are_served(
    zygote: Zygote, tmp_path: Path, trials: int, judge: Judge
) -> None:
    draw = random.Random(31)
    async with running(zygote, tmp_path) as system:
        jobs: list[str] = []
        for end in range(max(trials, 20)):
            submits = [
                asyncio.ensure_future(_after(draw.uniform(0, 0.2), system, f"{end}-{n}"))
                for n in range(25)
            ]
            await asyncio.sleep(0.1)  # so that they come within 100 ms of the end, before or after
            system.predictor.signal(signal.SIGTERM)
            jobs += await asyncio.gather(*submits)
            await system.predictor.gone()
            system.predictor.start()
            await system.predictor.ready()
        await system.ended(jobs, within_s=60)

        await judge(system, len(jobs), of="events as the last pod ended")


async def _after(seconds: float, system: System, name: str) -> str:
    await asyncio.sleep(seconds)
    return await system.client.submit(body(0), name)
