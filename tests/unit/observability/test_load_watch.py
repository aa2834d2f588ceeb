"""The other side's figures, as the watch reads them."""

from datetime import UTC, datetime

import pytest

from torpor.load.page import page
from torpor.load.sample import LoadSample, SampleOutcome
from torpor.load.schedule import ClientKind
from torpor.load.summary import Setup, summarise
from torpor.load.watch import MetricsSnapshot, Scrape, is_accounted, look_of, parse

PAGE = """
# TYPE torpor_queue_depth gauge
torpor_queue_depth{model="m",lane="default"} 3
torpor_queue_depth{model="m",lane="batch"} 4
# TYPE torpor_gpu_cost counter
torpor_gpu_cost_total{model="m",state="busy"} 1.5
"""


def test_series_are_summed_over_the_labels_not_asked_for() -> None:
    seen = parse(PAGE)

    assert seen.total("torpor_queue_depth") == 7
    assert seen.total("torpor_queue_depth", lane="batch") == 4
    assert seen.by("torpor_queue_depth", "lane") == {"default": 3, "batch": 4}


def test_a_missing_series_is_none_and_not_zero() -> None:
    assert parse(PAGE).total("torpor_nothing") is None
    assert parse(PAGE).highest("torpor_queue_depth", lane="interactive") is None


def test_a_part_that_does_not_answer_leaves_gaps() -> None:
    look = look_of(1.0, {"broker": parse(PAGE), "api": Scrape()}, Scrape())

    assert look.depth == 7
    assert look.ready is None


def test_the_page_loads_nothing_and_escapes_what_it_shows() -> None:
    setup = Setup(
        title="<b>&", target="http://t", model="m", is_open=True, seed=0, started_at="now"
    )
    sample = LoadSample(kind=ClientKind.SSE, due_s=0, ended_s=1, outcome=SampleOutcome.COMPLETED)
    look = look_of(1.0, {"broker": parse(PAGE), "api": parse(PAGE)}, Scrape())

    now = datetime(2026, 11, 30, 12, 5, tzinfo=UTC)
    html = page(summarise(setup, [sample], [look]), [sample], [look], now)

    assert "<b>&" not in html
    assert "<script" not in html
    assert "src=" not in html


def look(busy_s: float, charged_s: float) -> MetricsSnapshot:
    """What an api shows whose predictors posted and charged so much."""
    lines = [
        f'torpor_gpu_seconds_total{{model="m",state="busy"}} {busy_s}',
        'torpor_gpu_seconds_total{model="m",state="idle"} 100',
        f'torpor_gpu_work_seconds_total{{model="m",kind="kept"}} {charged_s}',
    ]
    return look_of(0.0, {"api": parse("\n".join(lines) + "\n")}, Scrape())


@pytest.mark.parametrize(
    ("last", "is_whole"),
    [
        pytest.param(look(10.0, 20.0), False, id="jobs charged, seconds not posted"),
        pytest.param(look(10.0, 10.0), False, id="jobs ended, nothing posted or charged"),
        pytest.param(look(15.0, 20.0), False, id="one of two predictors has posted"),
        pytest.param(look(20.0, 20.0), True, id="all have posted"),
        pytest.param(look(20.0, 20.01), True, id="charges rounded up"),
        pytest.param(look_of(0.0, {}, Scrape()), False, id="the api did not answer"),
    ],
)
def test_a_cost_is_whole_once_predictors_posted_what_their_jobs_were_charged(
    last: MetricsSnapshot, is_whole: bool
) -> None:
    assert is_accounted(look(10.0, 10.0), last, jobs=3) == is_whole


def test_missing_gpu_seconds_are_not_waited_for() -> None:
    silent = look_of(0.0, {}, Scrape())

    assert is_accounted(silent, silent, jobs=3)


def test_a_report_whose_cost_is_not_whole_says_so() -> None:
    setup = Setup(title="t", target="u", model="m", is_open=True, seed=0, started_at="now")

    report = summarise(setup, [], [look(10.0, 10.0), look(12.0, 20.0)])

    assert "lower bound" in report["notes"][-1]
