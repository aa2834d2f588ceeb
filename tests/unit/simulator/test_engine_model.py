"""A batching engine is as fast as its table says, whoever joins and leaves on the way."""

import pytest

from torpor.simulator.engine import EngineModel, SimulatedJob, SimulatedReplica, rates_of

MODEL = EngineModel(1000.0, ((1, 10.0), (4, 40.0), (8, 60.0)), max_batch=8)


def replica(model: EngineModel = MODEL, slots: int = 8) -> SimulatedReplica:
    return SimulatedReplica(
        1, rates_of(model, slots), model.prefill_tokens_per_s, model.decode_during_prefill, slots
    )


def job(number: int, prompt: int = 100, output: int = 11) -> SimulatedJob:
    return SimulatedJob(number, 0.0, prompt, output, remaining=output)


def run(engine: SimulatedReplica, until: float = 1000.0) -> list[tuple[float, int]]:
    """When each job ended."""
    ended = []
    while (at := engine.next_change()) < until:
        engine.advance(at)
        ended += [(round(at, 6), done.id) for done in engine.settle(at)]
    return ended


def test_one_job_takes_its_prefill_and_its_tokens() -> None:
    engine = replica()
    engine.take(job(1), 0.0)
    # 100 tokens read in 0.1 s give the first of 11 tokens; ten more at 10 a second.
    assert run(engine) == [(1.1, 1)]


def test_a_batch_shares_the_batch_rate() -> None:
    engine = replica(EngineModel(1e9, MODEL.decode, 8))
    for number in range(1, 5):
        engine.take(job(number), 0.0)
    # Four at 40 tokens a second together: ten tokens each take a second, as alone.
    assert run(engine) == [(1.0, n) for n in range(1, 5)]


def test_a_job_that_joins_slows_the_others_from_then_on() -> None:
    flat = EngineModel(1e9, ((1, 10.0),), max_batch=2)
    engine = replica(flat, slots=2)
    engine.take(job(1), 0.0)
    read_at = engine.next_change()
    engine.advance(read_at)
    engine.settle(read_at)
    engine.advance(0.5)
    engine.take(job(2), 0.5)
    # Half of the first answer is made alone, the other half at half speed.
    assert run(engine) == [(1.5, 1), (2.0, 2)]


def test_reading_a_prompt_slows_the_answers() -> None:
    engine = replica()
    engine.take(job(1), 0.0)
    engine.advance(0.1)
    engine.settle(0.1)
    engine.take(job(2, prompt=200), 0.1)
    # For 0.2 s at half speed the first answer makes 1 token instead of 2: 1.1 s becomes 1.2 s,
    # and as the batch rate is linear up to four, the second does not slow it further.
    assert run(engine)[0] == (1.2, 1)


def test_a_resumed_job_reads_what_it_had_and_makes_only_the_rest() -> None:
    engine = replica()
    first = job(1, prompt=100, output=11)
    engine.take(first, 0.0)
    engine.advance(0.1)
    engine.settle(0.1)
    engine.advance(0.6)
    handed = engine.hand_over(does_resume=True)

    other = replica()
    other.take(handed[0], 0.6)
    other.advance(0.6)

    # Six tokens were made; 106 are read in 0.106 s, which gives the seventh; four more take 0.4 s.
    assert first.remaining == 5
    assert run(other) == [(1.106, 1)]


def test_without_resuming_everything_starts_over() -> None:
    engine = replica()
    engine.take(job(1), 0.0)
    engine.advance(0.1)
    engine.settle(0.1)
    engine.advance(0.6)
    assert engine.hand_over(does_resume=False)[0].remaining == 11


def test_busy_time_is_time_with_work() -> None:
    engine = replica()
    engine.take(job(1), 5.0)
    run(engine)
    assert engine.busy_s == pytest.approx(1.1)


@pytest.mark.parametrize(("batch", "rate"), [(1, 10), (2, 20), (6, 50), (8, 60), (100, 60)])
def test_rates_between_measured_batches_are_linear(batch: int, rate: float) -> None:
    assert MODEL.batch_rate(batch) == pytest.approx(rate)


@pytest.mark.parametrize("decode", [(), ((2, 10.0),), ((1, 10.0), (1, 20.0)), ((1, 0.0),)], ids=str)
def test_speeds_that_make_no_sense_are_refused(decode: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match=r"must be|needs"):
        EngineModel(100.0, decode, max_batch=4)
