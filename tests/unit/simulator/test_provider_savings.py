"""What a provider beside a model of one's own would save on a trace: by a tier, and as a fallback."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.telemetry.cost import TokenPrice
from torpor.simulator.candidate import fixed_candidate, kpa_candidate
from torpor.simulator.command import Settings, fallback_note, load_of, scenario_of, tier_note
from torpor.simulator.measure import StoodIn
from torpor.simulator.plan import Tried, fallbacks, run, tiers
from torpor.simulator.world import simulate

PRICE = TokenPrice(input_per_1m=1.0, output_per_1m=10.0)
GPU_PRICE = 4.5


def trace(folder: Path, *rows: tuple[float, int, int]) -> Path:
    path = folder / "trace.csv"
    lines = [f"{at},{prompt},{output}" for at, prompt, output in rows]
    path.write_text("\n".join(["time,prompt_tokens,output_tokens", *lines]) + "\n")
    return path


def settings_of(path: Path, **more: float) -> Settings:
    given = {"tail_s": 60.0, "cold_start_s": 30.0, "gpu_price": GPU_PRICE, **more}
    return Settings(trace=path, **given)  # type: ignore[arg-type]


def test_a_tier_sends_longer_prompts_away_at_the_providers_price(tmp_path: Path) -> None:
    rows = [(float(at), 10, 20) for at in range(9)] + [(9.0, 5000, 100)]
    settings = settings_of(trace(tmp_path, *rows))
    load = load_of(settings)

    mixed = tiers(scenario_of(settings, load), load, fixed_candidate(1), GPU_PRICE, PRICE)

    assert [each.most_prompt_tokens for each in mixed] == [10]
    assert mixed[0].theirs == StoodIn(1, 5000, 100)
    assert mixed[0].provider_cost == pytest.approx((5000 * 1 + 100 * 10) / 1e6)
    assert mixed[0].tried.report.requests == 9
    assert mixed[0].cost == mixed[0].tried.report.cost + mixed[0].provider_cost


def test_a_fallback_answers_what_waits_for_a_start_and_the_rest_is_answered_here(
    tmp_path: Path,
) -> None:
    rows = [(0.0, 10, 20), (1.0, 30, 40), (25.0, 10, 20), (100.0, 10, 20)]
    settings = settings_of(trace(tmp_path, *rows), tail_s=200.0)
    load = load_of(settings)
    asleep = kpa_candidate("kpa", {"window": "600s"}, 16)

    (mixed,) = fallbacks(
        scenario_of(settings, load), load, [asleep], GPU_PRICE, PRICE, after_s=10.0
    )

    report = mixed.tried.report
    assert mixed.theirs == StoodIn(2, 40, 60)
    assert (report.requests, report.served, report.unserved) == (4, 2, 0)
    assert report.wait_s.most == pytest.approx(10.0, rel=0.01)
    assert mixed.provider_cost == pytest.approx((40 * 1 + 60 * 10) / 1e6)


def test_without_a_fallback_they_wait_for_the_start(tmp_path: Path) -> None:
    settings = settings_of(trace(tmp_path, (0.0, 10, 20), (1.0, 30, 40)), tail_s=200.0)
    load = load_of(settings)
    asleep = kpa_candidate("kpa", {"window": "600s"}, 16)

    report = run(scenario_of(settings, load), load, asleep, GPU_PRICE)

    assert report.stood_in == StoodIn()
    assert report.served == 2
    assert report.wait_s.most >= 29


@given(
    st.lists(st.tuples(st.floats(0, 200), st.integers(1, 4000), st.integers(1, 400)), max_size=30),
    st.sampled_from([0.5, 5.0, 40.0]),
)
def test_every_request_is_answered_here_or_there_or_is_counted_as_unserved(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, int]], after_s: float
) -> None:
    rows = sorted(rows) or [(0.0, 1, 1)]
    settings = settings_of(trace(tmp_path_factory.mktemp("trace"), *rows))
    load = load_of(settings)
    scenario = replace(scenario_of(settings, load), fallback_after_s=after_s)

    outcome = simulate(scenario, load.requests(), kpa_candidate("kpa", {}, 4).build())

    elsewhere = outcome.stood_in.requests + outcome.timed_out + outcome.refused
    assert outcome.served + outcome.unserved + elsewhere == outcome.requests == len(rows)
    there = outcome.stood_in.output_tokens
    if not outcome.unserved:
        assert outcome.output_tokens + there == sum(output for _, _, output in rows)


def test_the_notes_of_a_plan_say_who_answers_the_wait_and_both_costs(tmp_path: Path) -> None:
    rows = [(float(20 * at), 10, 20) for at in range(30)] + [(600.0, 9000, 3000)]
    settings = settings_of(trace(tmp_path, *rows), p95_wait_s=30.0)
    load = load_of(settings)
    candidate = fixed_candidate(1)
    chosen = Tried(candidate, run(scenario_of(settings, load), load, candidate, GPU_PRICE))
    asleep = kpa_candidate("asleep", {"window": "6s"}, 16)
    tried = [chosen, Tried(asleep, run(scenario_of(settings, load), load, asleep, GPU_PRICE))]

    cheap = TokenPrice(input_per_1m=0.1, output_per_1m=0.4)
    fallback = fallback_note(settings, tried, chosen, cheap, 5.0)
    by_length = tier_note(settings, chosen, cheap)
    dear = tier_note(settings, chosen, TokenPrice(output_per_1m=1e6))

    assert fallback.startswith("a fallback after 5 s, with asleep: it answers ")
    assert "p95 wait 5.0 s" in fallback
    assert fallback.endswith(f"instead of {chosen.report.cost:.3f}")
    assert by_length.startswith(f"all 31 requests cost {chosen.report.cost:.3f} here, 0.002 at the")
    assert dear.endswith("no tier by the length of the prompt costs less")
