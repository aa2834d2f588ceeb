"""Open and closed loops against a stalled server."""

import asyncio
from collections.abc import Iterator
from itertools import repeat

import pytest

from torpor.load.run import Closed, Run
from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.schedule import ClientKind, Shot
from torpor.load.summary import Setup, notes, summarise


class StalledSystem:
    """Answers nothing until `at_s`, everything at once from then on."""

    def __init__(self, at_s: float) -> None:
        self._at_s = at_s
        self._zero = asyncio.get_running_loop().time()

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self._zero

    async def send(self, shot: Shot, sample: LoadSample) -> None:
        sample.sent_s = sample.accepted_s = self.now()
        await asyncio.sleep(max(self._at_s - self.now(), 0.001))
        sample.ended_s = self.now()
        sample.outcome = SampleOutcome.COMPLETED

    async def settle(self, sample: LoadSample) -> None:
        return None


def shots(number: int, every_s: float) -> Iterator[Shot]:
    for index in range(number):
        yield Shot(at_s=index * every_s, kind=ClientKind.ASYNC, prompt_tokens=1, output_tokens=1)


def setup(*, is_open: bool) -> Setup:
    return Setup(title="t", target="u", model="m", is_open=is_open, seed=0, started_at="now")


async def test_an_open_loop_goes_on_sending_to_a_system_that_stalls() -> None:
    system = StalledSystem(0.3)
    run = Run(system, system.now)  # type: ignore[arg-type]

    await run.open_loop(shots(10, 0.02))

    assert max(sample.sent_s for sample in run.samples) < 0.29
    assert min(sample.total_s for sample in run.samples) > 0.1


async def test_a_closed_loop_hides_the_stall_and_its_report_says_so() -> None:
    system = StalledSystem(0.2)
    run = Run(system, system.now)  # type: ignore[arg-type]
    one = Shot(at_s=0, kind=ClientKind.ASYNC, prompt_tokens=1, output_tokens=1)

    await run.closed_loop(Closed(users=1, duration_s=0.4), lambda user: repeat(one))

    stalled = [sample for sample in run.samples if sample.total_s > 0.1]
    assert len(stalled) == 1
    assert "coordinated omission" in notes(setup(is_open=False), run.samples)[0]


async def test_a_generator_that_is_late_does_not_move_what_was_due() -> None:
    system = StalledSystem(0.0)
    run = Run(system, lambda: system.now() + 5.0)  # type: ignore[arg-type]

    await run.open_loop(shots(3, 0.1))

    assert [sample.due_s for sample in run.samples] == [0.0, 0.1, 0.2]


async def test_requests_over_the_generators_own_limit_count_as_unsent() -> None:
    system = StalledSystem(0.2)
    run = Run(system, system.now, most_open=3)  # type: ignore[arg-type]

    await run.open_loop(shots(5, 0.01))

    outcomes = [sample.outcome for sample in run.samples]
    assert outcomes == [SampleOutcome.COMPLETED] * 3 + [SampleOutcome.UNSENT] * 2


async def test_a_stopped_run_follows_what_it_sent() -> None:
    system = StalledSystem(0.1)
    run = Run(system, system.now)  # type: ignore[arg-type]
    asyncio.get_running_loop().call_later(0.05, run.stop)

    await run.open_loop(shots(100, 0.02))

    assert 0 < len(run.samples) < 10
    assert {sample.outcome for sample in run.samples} == {SampleOutcome.COMPLETED}


def test_times_are_counted_from_when_a_request_was_due() -> None:
    late = LoadSample(
        kind=ClientKind.SSE,
        due_s=1.0,
        sent_s=3.0,
        accepted_s=3.1,
        ended_s=4.0,
        outcome=SampleOutcome.COMPLETED,
    )

    report = summarise(setup(is_open=True), [late], [])

    assert report["seconds"]["total"]["p50"] == 3.0
    assert report["generator_lag_seconds"]["p50"] == 2.0
    assert any("generator itself was late" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("outcome", "lost"),
    [
        pytest.param(SampleOutcome.LOST, 1, id="accepted_and_never_seen_to_end"),
        pytest.param(SampleOutcome.REFUSED, 0, id="refused"),
        pytest.param(SampleOutcome.FAILED, 0, id="failed_and_told_so"),
    ],
)
def test_only_a_promise_that_was_not_kept_is_lost(outcome: SampleOutcome, lost: int) -> None:
    sample = LoadSample(kind=ClientKind.ASYNC, due_s=0, accepted_s=0.1, ended_s=9, outcome=outcome)

    assert summarise(setup(is_open=True), [sample], [])["lost"] == lost


def test_percentiles_contain_completed_requests_only() -> None:
    samples = [
        LoadSample(kind=ClientKind.ASYNC, due_s=0, ended_s=1, outcome=SampleOutcome.COMPLETED),
        LoadSample(kind=ClientKind.ASYNC, due_s=0, ended_s=99, outcome=SampleOutcome.FAILED),
    ]

    report = summarise(setup(is_open=True), samples, [])

    assert report["seconds"]["total"]["max"] == 1
    assert report["outcomes"] == {"completed": 1, "failed": 1}


async def test_a_stall_shows_in_the_p99_of_an_open_loop_however_few_it_caught() -> None:
    """Asked closed, one in thirty would have waited, and a p95 would know nothing of it."""
    system = StalledSystem(0.3)
    run = Run(system, system.now)  # type: ignore[arg-type]

    await run.open_loop(shots(30, 0.02))

    total = summarise(setup(is_open=True), run.samples, [])["seconds"]["total"]
    assert total["p99"] > 0.27
    assert total["p50"] < 0.27
    assert sum(sample.total_s > 0.1 for sample in run.samples) >= 8
