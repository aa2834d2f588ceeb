"""One attempt, on a scripted engine."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from eventing.clock import SystemClock
from eventing.cloudevent.job_event import job_of
from eventing.errors import BadRequest
from eventing.job.store import LeaseStatus
from predictor.engine.engine import DecodeStep, EngineRequest, PhaseReporter
from predictor.errors import EngineRequestError
from predictor.generation.append_batcher import AppendBatcher
from predictor.generation.checkpoint import Checkpoint
from predictor.generation.generation import (
    Attempt,
    Completed,
    EngineFailed,
    Generation,
    Interrupted,
)
from predictor.generation.replay_filter import ReplayFilter, entries_of
from tests.contract.rig import ids_of
from tests.unit.predictor.harness import UnreliableStore, asking, read_ids

OURS = (Interrupted.EXPIRED, Interrupted.STALLED, Interrupted.HANDOVER, Interrupted.ENGINE_DEAD)
"""Reasons that leave the job with us until it is settled."""


class ScriptedEngine:
    """Plays steps; counts how many were taken, and whether the run was closed."""

    model_names: Sequence[str] = ("scripted",)
    max_concurrency = 4

    def __init__(self, steps: Sequence[DecodeStep | Exception]) -> None:
        self._steps = steps
        self.taken = 0
        self.is_closed = False
        self.on_closing: Callable[[], object] = lambda: None

    async def start(self, report: PhaseReporter) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to free."""

    def is_healthy(self) -> bool:
        return True

    def validate(self, request: EngineRequest) -> None:
        """Everything is well."""

    def can_resume(self, request: EngineRequest) -> bool:
        return True

    async def run(
        self, request: EngineRequest, prior_token_ids: Sequence[int]
    ) -> AsyncGenerator[DecodeStep, None]:
        try:
            for step in self._steps:
                if isinstance(step, Exception):
                    raise step
                self.taken += 1
                yield step
                await asyncio.sleep(0)
        finally:
            self.is_closed = True
            self.on_closing()


def chunk(finish: str | None = None, **delta: Any) -> Mapping[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def call(call_id: str, arguments: str) -> list[dict[str, Any]]:
    function = {"name": "f", "arguments": arguments}
    return [{"index": 0, "id": call_id, "type": "function", "function": function}]


async def generation(
    steps: Sequence[DecodeStep | Exception],
    checkpoint: Checkpoint | None = None,
    *,
    flush_s: float = 0.001,
) -> tuple[Generation, UnreliableStore, ScriptedEngine]:
    store = UnreliableStore()
    job, _ = await store.submit(job_of(asking()))
    taken = await store.acquire(job.id, "p", can_resume=True)
    engine = ScriptedEngine(steps)
    attempt = Attempt(lease=taken.lease, acquired_s=0, token_count=0, can_resume=True)
    made = Generation(
        attempt,
        checkpoint or Checkpoint(),
        EngineRequest("r", job.request.url, job.request.body),
        engine=engine,
        store=store,
        appends=AppendBatcher(store),
        clock=SystemClock(),
        flush_s=flush_s,
    )
    return made, store, engine


async def test_a_tool_call_has_one_id_in_the_stream_and_in_the_result() -> None:
    shown = ReplayFilter()
    shown.note(entries_of(chunk(tool_calls=call("call_first", '{"a"'))))
    steps = [
        DecodeStep((), chunk(tool_calls=call("call_again", '{"a": 1}'))),
        DecodeStep((2,), chunk(finish="tool_calls")),
    ]
    made, _, _ = await generation(steps, Checkpoint((1,), shown=shown))
    result = await made.run()

    assert isinstance(result, Completed)
    assert result.body["choices"][0]["message"]["tool_calls"][0]["id"] == "call_first"


async def test_an_engine_far_ahead_of_a_silent_store_is_held_back() -> None:
    steps = [DecodeStep((i,), None) for i in range(30_000)]
    made, store, engine = await generation(steps)
    store.is_away = True
    running = asyncio.ensure_future(made.run())
    while engine.taken < 16_384:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    held_at = engine.taken
    made.interrupt(Interrupted.STORE_LOST)

    assert await running is Interrupted.STORE_LOST
    assert held_at < 17_000


async def test_a_bad_request_raised_during_the_run_is_the_callers_error() -> None:
    made, _, _ = await generation([BadRequest("too long", "messages")])
    result = await made.run()

    assert isinstance(result, EngineFailed)
    assert isinstance(result.error, BadRequest)


@pytest.mark.parametrize("why", list(Interrupted))
async def test_an_interruption_closes_the_run_whatever_the_reason(why: Interrupted) -> None:
    made, _, engine = await generation([DecodeStep((i,), None) for i in range(100_000)])
    running = asyncio.ensure_future(made.run())
    while not engine.taken:
        await asyncio.sleep(0)
    made.interrupt(why)

    assert await asyncio.wait_for(running, 10) is why
    assert engine.is_closed


async def test_the_first_reason_stands() -> None:
    made, _, _ = await generation([DecodeStep((1,), None)])
    made.interrupt(Interrupted.HANDOVER)
    made.interrupt(Interrupted.FENCED)

    assert await made.run() is Interrupted.HANDOVER


async def test_an_interruption_before_the_engine_started_ends_the_attempt() -> None:
    """It used to wait for ever: a task that is cancelled so early never gets to its `finally`."""
    made, _, engine = await generation([DecodeStep((1,), None)])
    running = asyncio.ensure_future(made.run())
    await asyncio.sleep(0)  # its tasks are there and have not begun
    made.interrupt(Interrupted.HANDOVER)

    assert await asyncio.wait_for(running, 10) is Interrupted.HANDOVER
    assert engine.taken == 0


@pytest.mark.parametrize("why", OURS)
async def test_tokens_made_before_an_interruption_are_written_while_the_lease_is_held(
    why: Interrupted,
) -> None:
    steps = [DecodeStep((i,), None) for i in range(100_000)]
    made, store, engine = await generation(steps, flush_s=10)  # the first write, and the last
    running = asyncio.ensure_future(made.run())
    while engine.taken < 50:
        await asyncio.sleep(0)
    made.interrupt(why)
    await running

    assert made.new_tokens >= 49
    assert read_ids(await store.read_stream(made.attempt.job_id)) == list(range(made.new_tokens))


@pytest.mark.parametrize("why", [why for why in Interrupted if why not in OURS])
async def test_a_hanging_write_does_not_delay_an_attempt_that_lost_its_lease(
    why: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, store, _ = await generation([DecodeStep((i,), None) for i in range(100_000)])
    is_hanging = asyncio.Event()

    async def hang(*_: object) -> LeaseStatus:
        is_hanging.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(store, "append_all", hang)
    running = asyncio.ensure_future(made.run())
    await is_hanging.wait()
    made.interrupt(why)

    assert await asyncio.wait_for(running, 10) is why


async def test_tokens_that_the_store_never_took_are_counted_as_lost() -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("torpor_tokens_lost_total") or 0

    made, store, engine = await generation([DecodeStep((i,), None) for i in range(100_000)])
    store.is_away = True
    before = counted()
    running = asyncio.ensure_future(made.run())
    while engine.taken < 20:
        await asyncio.sleep(0)
    made.interrupt(Interrupted.STORE_LOST)
    await running

    assert counted() - before == made.new_tokens >= 19


async def test_each_step_is_a_sign_of_life() -> None:
    made, _, _ = await generation([DecodeStep((), chunk(content="a"))])
    began_s = made.last_step_s
    await made.run()

    assert made.last_step_s > began_s


async def test_a_refused_write_is_counted_and_a_cancel_that_was_only_heard_of_is_not() -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("torpor_fenced_writes_total") or 0

    made, store, _ = await generation([DecodeStep((i,), None) for i in range(100_000)])
    running = asyncio.ensure_future(made.run())
    await store.cancel(made.attempt.job_id)
    before = counted()
    assert await running is Interrupted.ENDED
    assert counted() == before + 1

    made, _, _ = await generation([DecodeStep((1,), None)])
    made.on_hold(LeaseStatus.TERMINAL)
    assert await made.run() is Interrupted.ENDED
    assert counted() == before + 1


async def test_text_that_comes_after_the_last_token_is_shown() -> None:
    made, _, _ = await generation([DecodeStep((1,), None), DecodeStep((), chunk(content="late"))])

    result = await made.run()

    assert isinstance(result, Completed)
    assert result.final_batch is not None
    assert "late" in result.final_batch.delta


async def test_tokens_made_before_the_engine_failed_are_written() -> None:
    made, store, _ = await generation([DecodeStep((1,), None), EngineRequestError("it broke")])

    assert isinstance(await made.run(), EngineFailed)

    assert await ids_of(store, made.attempt.job_id, 9) == [1]


async def test_an_interruption_as_the_engine_ends_still_writes_the_last_tokens() -> None:
    made, store, engine = await generation([DecodeStep((1,), None)])
    engine.on_closing = lambda: made.interrupt(Interrupted.HANDOVER)

    assert await made.run() is Interrupted.HANDOVER

    assert await ids_of(store, made.attempt.job_id, 9) == [1]
