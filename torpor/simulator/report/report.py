"""The result of a run: as a table and as JSON.

Called by the command line, the benches and `plan.py`. `page.py` makes the page with plots.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from torpor.simulator.measure import QuantileSketch, RunOutcome, StoodIn


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of durations in seconds."""

    p50: float
    p95: float
    p99: float
    mean: float
    most: float


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """One policy's run; shares in percent, durations in seconds, money as the price has it."""

    policy: str
    requests: int
    served: int
    timed_out: int
    timed_out_percent: float
    refused: int
    unserved: int
    stood_in: StoodIn
    wait_s: Spread
    first_token_s: Spread
    total_s: Spread
    most_replicas: int
    cold_starts: int
    handed_over: int
    gpu_busy_s: float
    gpu_idle_s: float
    gpu_waking_s: float
    gpu_empty_s: float
    gpu_billed_s: float
    cost: float
    cost_per_1k_tokens: float | None
    output_tokens: int
    simulated_s: float
    series_names: tuple[str, ...]
    series: tuple[tuple[float, ...], ...]


def report(policy: str, outcome: RunOutcome, price_per_gpu_hour: float) -> SimulationReport:
    """The report of one run at a price per GPU and hour."""
    gpu = outcome.gpu
    cost = gpu.billed / 3600 * price_per_gpu_hour
    tokens = outcome.output_tokens
    return SimulationReport(
        policy=policy,
        requests=outcome.requests,
        served=outcome.served,
        timed_out=outcome.timed_out,
        timed_out_percent=_round(100 * outcome.timed_out / max(1, outcome.requests)),
        refused=outcome.refused,
        unserved=outcome.unserved,
        stood_in=outcome.stood_in,
        wait_s=_spread(outcome.wait),
        first_token_s=_spread(outcome.first_token),
        total_s=_spread(outcome.total),
        most_replicas=outcome.most_replicas,
        cold_starts=outcome.cold_starts,
        handed_over=outcome.handed_over,
        gpu_busy_s=_round(gpu.busy),
        gpu_idle_s=_round(gpu.idle),
        gpu_waking_s=_round(gpu.waking),
        gpu_empty_s=_round(gpu.empty),
        gpu_billed_s=_round(gpu.billed),
        cost=_round(cost),
        cost_per_1k_tokens=_round(cost / tokens * 1000, 6) if tokens else None,
        output_tokens=tokens,
        simulated_s=_round(outcome.end_s),
        series_names=("t_s", *outcome.series.names),
        series=tuple(tuple(_round(v) for v in point) for point in outcome.series.points),
    )


def as_json(reports: Sequence[SimulationReport]) -> str:
    """The reports as JSON: the same runs give the same bytes."""
    return json.dumps([asdict(r) for r in reports], indent=1, sort_keys=True) + "\n"


def as_table(reports: Sequence[SimulationReport], *, title: str) -> Table:
    """The reports side by side."""
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for one in reports:
        table.add_column(one.policy, justify="right", overflow="fold")
    for name, values in rows(reports):
        table.add_row(name, *values)
    return table


def rows(reports: Sequence[SimulationReport]) -> list[tuple[str, list[str]]]:
    """The lines of the comparison: a name and one text per report."""
    return [
        ("requests", [f"{r.requests:,}" for r in reports]),
        ("served", [f"{r.served:,}" for r in reports]),
        ("timed out", [f"{r.timed_out_percent:.1f} %" for r in reports]),
        ("unserved or refused", [f"{r.unserved + r.refused:,}" for r in reports]),
        ("wait p50 / p95 / p99", [_line(r.wait_s) for r in reports]),
        ("first token p50 / p95 / p99", [_line(r.first_token_s) for r in reports]),
        ("total p50 / p95 / p99", [_line(r.total_s) for r in reports]),
        ("most replicas", [f"{r.most_replicas:,}" for r in reports]),
        ("cold starts", [f"{r.cold_starts:,}" for r in reports]),
        ("GPU-seconds billed", [f"{r.gpu_billed_s:,.0f}" for r in reports]),
        ("  busy", [f"{r.gpu_busy_s:,.0f}" for r in reports]),
        ("  idle", [f"{r.gpu_idle_s:,.0f}" for r in reports]),
        ("  waking", [f"{r.gpu_waking_s:,.0f}" for r in reports]),
        ("  empty node", [f"{r.gpu_empty_s:,.0f}" for r in reports]),
        ("cost", [f"{r.cost:,.3f}" for r in reports]),
        ("cost per 1,000 tokens", [_money(r.cost_per_1k_tokens) for r in reports]),
    ]


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def _line(spread: Spread) -> str:
    return f"{seconds(spread.p50)} / {seconds(spread.p95)} / {seconds(spread.p99)}"


def _money(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _spread(sketch: QuantileSketch) -> Spread:
    return Spread(
        p50=_round(sketch.quantile(0.5)),
        p95=_round(sketch.quantile(0.95)),
        p99=_round(sketch.quantile(0.99)),
        mean=_round(sketch.mean),
        most=_round(sketch.largest),
    )


def _round(value: float, digits: int = 3) -> float:
    return round(value, digits)
