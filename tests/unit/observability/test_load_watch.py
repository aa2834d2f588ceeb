"""The other side's figures, as the watch reads them."""

from knative.load.page import page
from knative.load.sample import Outcome, Sample
from knative.load.schedule import ClientKind
from knative.load.summary import Setup, summarise
from knative.load.watch import Scrape, look_of, parse

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


def test_what_is_not_there_is_none_and_not_zero() -> None:
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
    sample = Sample(kind=ClientKind.SSE, due_s=0, ended_s=1, outcome=Outcome.COMPLETED)
    look = look_of(1.0, {"broker": parse(PAGE), "api": parse(PAGE)}, Scrape())

    html = page(summarise(setup, [sample], [look]), [sample], [look])

    assert "<b>&" not in html
    assert "<script" not in html
    assert "src=" not in html
