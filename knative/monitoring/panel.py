"""One graph of the dashboard, and the forms that many of them have. Pure.

Called by the modules that list the rows.
"""

from dataclasses import dataclass
from typing import Final

from knative.monitoring.query import quantile


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: title, unit as Grafana names it, (query, legend) pairs, and what it tells. `is_stat` shows the last
    value alone.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    tells: str
    is_stat: bool = False


def percentiles(name: str, by: str = "model") -> tuple[tuple[str, str], ...]:
    return tuple(
        (quantile(share, name, by), f"{{{{{by}}}}} p{share * 100:g}") for share in (0.5, 0.95, 0.99)
    )


def stat(title: str, unit: str, text: str, tells: str) -> Panel:
    return Panel(title, unit, ((text, ""),), tells, is_stat=True)


MONEY: Final = "currency:¤"
"""Money of the operator, who set the price: `TORPOR_GPU_PRICE_PER_HOUR` has no currency."""

Row = tuple[str, tuple[Panel, ...]]
"""A title and its panels."""
