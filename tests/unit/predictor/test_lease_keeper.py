"""Decisions about running attempts, by the clock and by the store's answer."""

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from eventing.cloudevent.event import Event
from eventing.job.job import JobId
from eventing.job.store import Lease, LeaseStatus
from predictor.delivery.lease import LeaseKeeper, verdict
from predictor.generation.generation import Attempt, Interrupted
from tests.unit.predictor.harness import Harness, asking, job_id_of, open_harness

LONG = {"output_tokens": 2000, "tokens_per_s": 100}


@dataclass
class Running:
    extended_s: float = 0.0
    last_step_s: float = 0.0


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        pytest.param(Running(95, 95), None, id="all-is-well"),
        pytest.param(
            Running(70, 100), Interrupted.STORE_LOST, id="lease-not-lengthened-for-its-length"
        ),
        pytest.param(Running(70.1, 100), None, id="lease-almost-over"),
        pytest.param(Running(100, 88), Interrupted.STALLED, id="no-token-for-the-stall-time"),
        pytest.param(Running(100, 88.1), None, id="a-slow-token"),
    ],
)
def test_a_verdict_follows_from_the_clock(running: Running, expected: Interrupted | None) -> None:
    assert verdict(running, 100, lease_s=30, stall_s=12) is expected  # type: ignore[arg-type]


async def test_a_lease_is_lengthened_for_as_long_as_the_job_runs() -> None:
    async with open_harness(lease_s=0.5) as harness:
        event = asking(seeded={"output_tokens": 150, "tokens_per_s": 100})
        answer = await harness.deliver(event)

        assert answer.status == 200  # it took three leases
        job = await harness.store.get(job_id_of(event))
        assert job is not None
        assert job.attempt == 1


async def test_the_stores_lease_grows_while_the_job_runs() -> None:
    async with open_harness(lease_s=0.5) as harness:
        event = asking(seeded=LONG)
        running = asyncio.ensure_future(harness.deliver(event))
        await harness.wait_tokens(event, 1)
        first = await lease_until(harness, event)
        async with asyncio.timeout(60):
            while await lease_until(harness, event) <= first:
                await asyncio.sleep(0.01)
        running.cancel()


async def lease_until(harness: Harness, event: Event) -> int:
    job = await harness.store.get(job_id_of(event))
    assert job is not None
    assert job.lease_until_ms is not None
    return job.lease_until_ms


@pytest.mark.parametrize(
    ("extended_s", "extend"),
    [
        pytest.param((100, 89.9), True, id="the-oldest-is-a-third-through"),
        pytest.param((100, 90.1), False, id="all-are-young"),
    ],
)
async def test_leases_are_lengthened_when_the_oldest_is_a_third_through(
    extended_s: tuple[float, float], extend: bool
) -> None:
    asked = Asked()
    keeper = LeaseKeeper(asked, asked, lease_s=30, watch_s=0.001, stall_s=99)  # type: ignore[arg-type]
    running = [Watched(f"j{n}", at_s) for n, at_s in enumerate(extended_s)]
    with ExitStack() as watched:
        for each in running:
            watched.enter_context(keeper.watching(each))  # type: ignore[arg-type]
        rounds = asyncio.ensure_future(keeper.run())
        while len(asked.extends) < 2:
            await asyncio.sleep(0.001)
        rounds.cancel()

    assert asked.extends[:2] == [extend, False]
    assert [each.extended_s for each in running] == ([100, 100] if extend else [*extended_s])


class Asked:
    """A store that holds every lease, and a clock that stands still."""

    def __init__(self) -> None:
        self.extends: list[bool] = []

    def monotonic_s(self) -> float:
        return 100.0

    async def renew(self, leases: Sequence[object], *, extend: bool) -> list[LeaseStatus]:
        self.extends.append(extend)
        return [LeaseStatus.OK for _ in leases]


class Watched:
    """A running attempt, as far as the keeper knows one."""

    last_step_s = 100.0

    def __init__(self, job_id: str, extended_s: float) -> None:
        self.attempt = Attempt(
            lease=Lease(JobId(job_id), 1, "a"), acquired_s=0, token_count=0, can_resume=True
        )
        self.extended_s = extended_s

    def on_hold(self, hold: LeaseStatus) -> None:
        assert hold is LeaseStatus.OK


async def test_all_jobs_are_asked_about_in_one_round_trip() -> None:
    async with open_harness() as harness:
        rounds: list[int] = []
        renew = harness.store.renew

        async def counted(leases: list[object], *, extend: bool) -> object:
            rounds.append(len(leases))
            return await renew(leases, extend=extend)

        harness.store.renew = counted  # type: ignore[method-assign,assignment]
        events = [asking(event_id=f"e{i}", seeded=LONG) for i in range(3)]
        running = [asyncio.ensure_future(harness.deliver(event)) for event in events]
        await harness.wait_tokens(events[-1], 20)
        for task in running:
            task.cancel()

        assert max(rounds) == 3


async def test_a_job_that_ended_is_not_asked_about() -> None:
    async with open_harness() as harness:
        await harness.deliver(asking(seeded={"output_tokens": 3}))

        assert harness.keeper.running == 0


def test_an_attempt_that_was_overtaken_here_leaves_the_next_one_watched() -> None:
    keeper = LeaseKeeper(None, None, lease_s=30, watch_s=1, stall_s=9)  # type: ignore[arg-type]
    overtaken, newer = Watched("j", 1), Watched("j", 2)
    with ExitStack() as first:
        first.enter_context(keeper.watching(overtaken))  # type: ignore[arg-type]
        with keeper.watching(newer):  # type: ignore[arg-type]
            first.close()

            assert keeper.running == 1


def test_short_leases_are_watched_more_often() -> None:
    keeper = LeaseKeeper(None, None, lease_s=0.6, watch_s=0.5, stall_s=9)  # type: ignore[arg-type]

    assert keeper.watch_s == pytest.approx(0.1)
