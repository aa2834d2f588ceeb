"""Plots of reports: axes, gaps, lines that lie on each other, the winner, the frame of a page."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from torpor.simulator.measure import StoodIn
from torpor.simulator.plan import WaitTarget
from torpor.simulator.report.axis import amount_words, marks, time_marks, time_words
from torpor.simulator.report.page import cheapest, page, plot
from torpor.simulator.report.plot import PlotAxis, PlotBar, PlotLine, bar_plot, line_plot
from torpor.simulator.report.report import SimulationReport, Spread

NOW = datetime(2026, 11, 30, 12, 5, tzinfo=UTC)
SPREAD = Spread(p50=1.0, p95=2.0, p99=3.0, mean=1.0, most=3.0)


def run(policy: str, *, p95_s: float = 2.0, cost: float = 1.0) -> SimulationReport:
    return SimulationReport(
        policy=policy,
        requests=1,
        served=1,
        timed_out=0,
        timed_out_percent=0.0,
        refused=0,
        unserved=0,
        wait_s=replace(SPREAD, p95=p95_s),
        first_token_s=SPREAD,
        total_s=SPREAD,
        stood_in=StoodIn(),
        most_replicas=1,
        cold_starts=1,
        handed_over=0,
        gpu_busy_s=1,
        gpu_idle_s=1,
        gpu_waking_s=1,
        gpu_empty_s=0,
        gpu_billed_s=3,
        cost=cost,
        cost_per_1k_tokens=None,
        output_tokens=0,
        simulated_s=60,
        series_names=(
            "t_s",
            "ready",
            "queued",
            "p95_s",
            "slot_percent",
            "arrivals_per_s",
        ),
        series=((0.0, 0.0, 0.0, 0.0, 0.0, 1.0), (60.0, 1.0, 2.0, 3.0, 50.0, 0.0)),
    )


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]


@given(st.floats(0, 1e12))
@example(5e-324)
def test_marks_are_few_rise_from_zero_and_reach_the_highest_value(most: float) -> None:
    found = marks(most)

    assert found[0] == 0
    assert found == sorted(set(found))
    assert found[-1] >= most * (1 - 1e-9)
    assert len(found) <= 8


@given(st.integers(0, 10**9))
def test_marks_of_counts_are_whole(most: int) -> None:
    assert all(mark == int(mark) for mark in marks(most, is_whole=True))


@pytest.mark.parametrize(
    ("most_s", "words"),
    [
        (1800, ["0", "5 min", "10 min", "15 min", "20 min", "25 min", "30 min"]),
        (90, ["0", "15 s", "30 s", "45 s", "60 s", "75 s", "90 s"]),
        (6 * 3600, ["0", "1 h", "2 h", "3 h", "4 h", "5 h", "6 h"]),
        (14 * 86400, ["0", "3 d", "6 d", "9 d", "12 d"]),
    ],
    ids=["half an hour", "a minute and a half", "six hours", "two weeks"],
)
def test_times_are_said_as_people_say_them(most_s: float, words: list[str]) -> None:
    found = time_marks(most_s)

    assert [time_words(mark, found[1]) for mark in found] == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.25, "0.25"), (9000, "9000"), (12000, "12k"), (2.5e6, "2.5M")]
)
def test_large_amounts_are_short(value: float, words: str) -> None:
    assert amount_words(value) == words


def test_a_replica_count_of_one_has_no_halves() -> None:
    svg = line_plot("Ready", [PlotLine("a", [(0, 0), (60, 1)])], PlotAxis(is_whole=True))

    assert {text for text in texts(svg) if re.fullmatch(r"[\d.]+", text)} == {"0", "1"}


def test_a_gap_is_not_drawn_over() -> None:
    points = [(0.0, 1.0), (1.0, 1.0), (2.0, None), (3.0, 2.0), (4.0, 2.0)]
    svg = line_plot("p95", [PlotLine("a", points)])

    path = re.search(r'class="l0" d="(M[^h"]*)"', svg)
    assert path
    assert path[1].count("M") == 2


def test_a_step_holds_its_value_until_the_next() -> None:
    line = [PlotLine("a", [(0, 0), (60, 1)])]

    assert "H" in line_plot("Ready", line, PlotAxis(is_step=True))
    assert "H" not in line_plot("Ready", line)


def test_lines_that_lie_on_each_other_are_told_apart_by_width_and_dashes() -> None:
    same = [(0.0, 1.0), (60.0, 1.0)]
    svg = line_plot("Same", [PlotLine(name, same) for name in ("a", "b", "c")])
    style = {
        (found[2], found[3])
        for found in re.finditer(
            r"\.l(\d)\{[^}]*stroke-width:([\d.]+);stroke-dasharray:([^}]+)\}", svg
        )
    }

    assert len(style) == 7
    assert {"a", "b", "c"} <= set(texts(svg))


def test_pictures_follow_the_colour_scheme_and_a_phones_width_and_say_what_they_show() -> None:
    svg = bar_plot("Wait", ("p50", "p95"), [PlotBar("<kpa>", [1, 2])], unit=" s", target=4)

    assert "prefers-color-scheme:dark" in svg
    assert "max-width:520px" in svg
    assert 'aria-label="Wait: &lt;kpa&gt; 3 s"' in svg
    assert 'class="target"' in svg


def test_nothing_asked_is_a_gap_and_a_load_that_all_have_is_one_line() -> None:
    runs = [run("kpa"), run("keda")]

    drawn = re.search(r'class="l0" d="([^"h]*)"', plot("p95_s", "p95", PlotAxis(), [run("kpa")]))

    assert drawn
    assert drawn[1].startswith("M688")  # the first point, where nothing was asked, is not there
    assert "every policy" in texts(plot("arrivals_per_s", "Requests", PlotAxis(), runs))


def test_the_page_names_the_cheapest_that_keeps_the_target_its_date_and_version() -> None:
    runs = [run("slow", p95_s=9, cost=1), run("kpa", cost=3), run("work", cost=2)]

    html = page("A day", [], runs, WaitTarget(5), NOW)

    assert cheapest(runs, WaitTarget(5)) is runs[2]
    assert "the cheapest that keeps it: work" in html
    assert "<th>work ✓</th>" in html
    assert "nth-child(4)" in html
    assert re.search(r"Made 2026-11-30 12:05 UTC, torpor \S+\.", html)
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_the_page_says_when_none_keeps_the_target() -> None:
    html = page("A day", [], [run("slow", p95_s=9)], WaitTarget(5), NOW)

    assert "none keeps it" in html
    assert "✓" not in html
