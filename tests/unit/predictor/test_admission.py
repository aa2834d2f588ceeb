"""Admission: which call gets slots, and which waits for how many."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest
import pytest_asyncio

from eventing.errors import Overloaded, Unavailable
from predictor.delivery.admission import Admission, AdmissionPhase, sequences
from predictor.engine.seeded_engine import SeededEngine, SeededSettings


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[SeededEngine]:
    engine = SeededEngine(SeededSettings(max_concurrency=2))
    await engine.start(lambda _: None)
    yield engine
    await engine.stop()


@pytest.fixture
def admission(engine: SeededEngine) -> Admission:
    admission = Admission(engine)
    admission.open()
    return admission


def test_no_more_are_let_in_than_the_batch_holds(admission: Admission) -> None:
    with admission.slot(), admission.slot(), pytest.raises(Overloaded), admission.slot():
        pass


def test_a_slot_is_free_again_when_its_holder_fails(admission: Admission) -> None:
    with ExitStack() as fails:
        fails.enter_context(pytest.raises(ZeroDivisionError))
        fails.enter_context(admission.slot())
        _ = 1 / 0

    assert admission.in_flight == 0


def test_no_call_is_admitted_before_the_engine_serves(engine: SeededEngine) -> None:
    admission = Admission(engine)

    with pytest.raises(Unavailable, match="starting"), admission.slot():
        pass


def test_no_call_is_admitted_while_draining(admission: Admission) -> None:
    admission.drain()

    with pytest.raises(Unavailable, match="draining"), admission.slot():
        pass


async def test_no_call_is_admitted_once_the_engine_died(
    admission: Admission, engine: SeededEngine
) -> None:
    await engine.stop()

    assert admission.phase is AdmissionPhase.BROKEN
    with pytest.raises(Unavailable, match="gone"), admission.slot():
        pass


def test_every_change_of_load_is_reported(engine: SeededEngine) -> None:
    told: list[int] = []
    admission = Admission(engine, told.append)
    admission.open()

    with admission.slot():
        pass

    assert told == [1, 0]


async def test_idle_comes_with_the_end_of_the_last_one(admission: Admission) -> None:
    with admission.slot():
        waiting = asyncio.ensure_future(admission.wait_idle())
        with admission.slot():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        is_idle_too_soon = waiting.done()

    await waiting
    assert not is_idle_too_soon


@pytest.mark.parametrize(
    ("body", "slots"),
    [
        pytest.param({"messages": []}, 1, id="one-chat"),
        pytest.param({"messages": [[{}], [{}]]}, 2, id="two-conversations"),
        pytest.param({"messages": [], "n": 3}, 3, id="three-choices"),
        pytest.param({"prompt": ["a", "b"], "n": 2}, 4, id="two-prompts-of-two-choices"),
        pytest.param({"prompt": [1, 2, 3]}, 1, id="one-prompt-of-token-ids"),
        pytest.param({"prompt": [], "n": "x"}, 1, id="nonsense"),
    ],
)
def test_a_call_takes_a_slot_for_each_sequence(body: dict[str, object], slots: int) -> None:
    assert sequences(body) == slots


def test_a_call_larger_than_the_batch_takes_all_of_it(admission: Admission) -> None:
    with admission.slot(5):
        assert admission.in_flight == 2


def test_a_call_that_does_not_fit_beside_the_others_waits(admission: Admission) -> None:
    with admission.slot(), pytest.raises(Overloaded), admission.slot(2):
        pass


async def entered(admission: Admission, running: asyncio.Event, end: asyncio.Event) -> None:
    """Somebody who runs alone until `end`."""
    async with admission.reserve() as slot:
        await slot.take_all()
        running.set()
        await end.wait()


async def test_an_exclusive_slot_waits_until_the_others_are_released(admission: Admission) -> None:
    running, end = asyncio.Event(), asyncio.Event()
    with admission.slot():
        alone = asyncio.create_task(entered(admission, running, end))
        await asyncio.sleep(0)
        assert not running.is_set()

    await asyncio.wait_for(running.wait(), 1)
    assert admission.in_flight == 2
    end.set()
    await alone
    assert admission.in_flight == 0


@pytest.mark.parametrize("has_begun", [False, True], ids=["it waits", "it runs"])
async def test_no_call_is_admitted_beside_an_exclusive_slot(
    admission: Admission, has_begun: bool
) -> None:
    running, end = asyncio.Event(), asyncio.Event()
    with ExitStack() as others:
        others.enter_context(admission.slot())
        alone = asyncio.create_task(entered(admission, running, end))
        await asyncio.sleep(0)
        if has_begun:
            others.close()
            await asyncio.wait_for(running.wait(), 1)

        with pytest.raises(Overloaded), admission.slot():
            pass
        with pytest.raises(Overloaded):
            await entered(admission, running, end)

    end.set()
    await alone
    with admission.slot():
        pass


async def test_a_drain_refuses_a_waiting_exclusive_slot(admission: Admission) -> None:
    with admission.slot():
        alone = asyncio.create_task(entered(admission, asyncio.Event(), asyncio.Event()))
        await asyncio.sleep(0)
        admission.drain()

    with pytest.raises(Unavailable, match="draining"):
        await alone


async def test_a_large_delivery_is_not_passed_by_small_ones_for_ever(admission: Admission) -> None:
    """Each slot that freed went to a delivery of one sequence: 117 s at 6 of 16."""
    running = asyncio.Event()

    async def large() -> None:
        async with admission.reserve(2):
            running.set()

    with ExitStack() as first, ExitStack() as second:
        first.enter_context(admission.slot())
        second.enter_context(admission.slot())
        waiting = asyncio.create_task(large())
        await asyncio.sleep(0)
        first.close()
        with pytest.raises(Overloaded, match="reserved"):
            second.enter_context(admission.slot())
        assert not running.is_set()
    await waiting
    with admission.slot():
        assert admission.in_flight == 1


async def test_a_small_delivery_never_waits_here(admission: Admission) -> None:
    with admission.slot(2), pytest.raises(Overloaded):
        async with admission.reserve(1):
            pass


async def test_a_slot_grows_to_the_whole_batch(admission: Admission) -> None:
    async with admission.reserve(1) as slot:
        await slot.take_all()
        assert admission.in_flight == 2
    assert admission.in_flight == 0


async def test_a_reservation_ends_when_its_caller_is_cancelled(admission: Admission) -> None:
    async def large() -> None:
        async with admission.reserve(2):
            pass

    with admission.slot():
        waiting = asyncio.create_task(large())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        with admission.slot():
            assert admission.in_flight == 2
