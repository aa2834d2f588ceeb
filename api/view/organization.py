"""What a tenant used and what it cost on a day, in the form of OpenAI's usage API.

Called by `api.routes.organization`. Pure. Must not know how usage is counted.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from api.http.described import described
from eventing.job.job import JobState
from eventing.telemetry.cost import ANSWER, KINDS, MICRO, Price
from eventing.telemetry.usage import UsageRow


class GroupBy(StrEnum):
    """The fields that usage can be grouped by."""

    KEY = "api_key_id"
    MODEL = "model"


class CostGroupBy(StrEnum):
    """The fields that costs can be grouped by."""

    KEY = "api_key_id"
    MODEL = "model"
    LINE_ITEM = "line_item"


@described
class SavedView(TypedDict):
    """What kept answers and answers of running jobs saved."""

    exact: int
    """Jobs with the answer of the same request"""
    coalesced: int
    """Jobs that waited for the answer of the same request, which was running"""
    semantic: int
    """Jobs with the answer of a request of the same meaning"""
    input_tokens: int
    output_tokens: int
    cost: float | None
    """At the prices of the model's card; of a model of your own, at what a token of its answers cost that day: null
    where none was generated
    """


class EndedView(TypedDict):
    """Jobs by how they ended."""

    completed: int
    incomplete: int
    failed: int
    cancelled: int


class SpentView(TypedDict):
    """Tokens and money that were spent beside the answers, both in the sums."""

    tokens: int
    cost: float


@described
class UsageResult(TypedDict):
    """What was used. Fields that OpenAI has not: `thought_tokens` and all after it."""

    object: Literal[
        "organization.usage.completions.result",
        "organization.usage.embeddings.result",
        "organization.usage.moderations.result",
    ]
    input_tokens: int
    input_cached_tokens: int
    output_tokens: int
    num_model_requests: int
    project_id: None
    user_id: None
    api_key_id: str | None
    model: str | None
    batch: None
    thought_tokens: int
    ended: EndedView
    dead_letters: int
    saved: SavedView
    spent_beside: dict[str, SpentView]
    """By kind: `hedged`, `retried`, `repaired`, `cascaded`"""
    gpu_seconds: float
    cost: float


class AmountView(TypedDict):
    """Money."""

    value: float
    currency: str


@described
class CostResult(TypedDict):
    """What it cost."""

    object: Literal["organization.costs.result"]
    amount: AmountView
    line_item: str | None
    """What was paid for: the `answer`, or what was spent beside it (`hedged`, `retried`, `repaired`, `cascaded`)"""
    project_id: None
    api_key_id: str | None
    model: NotRequired[str | None]


@described
class UsageBucket(TypedDict):
    """A day."""

    object: Literal["bucket"]
    start_time: int
    """When it begins, in seconds, by UTC"""
    end_time: int
    results: list[UsageResult]
    """None where nothing ended"""


class CostBucket(TypedDict):
    """A day."""

    object: Literal["bucket"]
    start_time: int
    end_time: int
    results: list[CostResult]


@described
class UsagePage(TypedDict):
    """Days, oldest first."""

    object: Literal["page"]
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None
    """The `page` of the days after these"""


class CostPage(TypedDict):
    """Days, oldest first."""

    object: Literal["page"]
    data: list[CostBucket]
    has_more: bool
    next_page: str | None


def grouped(
    rows: Iterable[UsageRow], groups: Sequence[str]
) -> list[tuple[dict[str, str | None], list[UsageRow]]]:
    """The rows that are shown as one, with what they have in common."""
    found: dict[tuple[str | None, str | None], list[UsageRow]] = {}
    for row in rows:
        key_id = (row.key_id or None) if GroupBy.KEY in groups else None
        model = row.model if GroupBy.MODEL in groups else None
        found.setdefault((key_id, model), []).append(row)
    named = sorted(found.items(), key=lambda each: (each[0][0] or "", each[0][1] or ""))
    return [({"api_key_id": key_id, "model": model}, rows) for (key_id, model), rows in named]


def usage_result(rows: Sequence[UsageRow], kind: str, price: Price) -> dict[str, Any]:
    """What these rows used, as an object of this `kind`."""
    total = _sums(rows)
    ended = {str(state): total(state) for state in JobState if state.is_terminal}
    return {
        "object": kind,
        "input_tokens": total("input_tokens"),
        "input_cached_tokens": total("cached_tokens"),
        "output_tokens": total("output_tokens"),
        "num_model_requests": sum(ended.values()),
        "project_id": None,
        "user_id": None,
        "batch": None,
        "thought_tokens": total("thought_tokens"),
        "ended": ended,
        "dead_letters": total("dead_letters"),
        "saved": {
            "exact": total("hits_exact"),
            "coalesced": total("hits_coalesced"),
            "semantic": total("hits_semantic"),
            "input_tokens": total("saved_input_tokens"),
            "output_tokens": total("saved_output_tokens"),
            "cost": _saved_cost(rows),
        },
        "spent_beside": {
            kind: {"tokens": total(f"{kind}_tokens"), "cost": total(f"{kind}_cost") / MICRO}
            for kind in KINDS[1:]
        },
        "gpu_seconds": round(total("gpu_ms") * price.gpus / 1000, 3),
        "cost": _cost(rows, price) / MICRO,
    }


def cost_results(
    rows: Sequence[UsageRow], price: Price, currency: str, *, by_line_item: bool
) -> list[dict[str, Any]]:
    """One result, or one for each line item that there is."""
    total = _sums(rows)
    cost = _cost(rows, price)
    amounts: dict[str | None, int] = {None: cost}
    if by_line_item:
        beside = {kind: total(f"{kind}_cost") for kind in KINDS[1:]}
        amounts = {ANSWER: cost - sum(beside.values())}
        amounts.update(beside)
    return [
        {
            "object": "organization.costs.result",
            "amount": {"value": amount / MICRO, "currency": currency},
            "line_item": item,
            "project_id": None,
        }
        for item, amount in amounts.items()
        if amount or item in (None, ANSWER)
    ]


def _cost(rows: Sequence[UsageRow], price: Price) -> int:
    """In millionths; GPU time that was charged after its job's end at today's price."""
    total = _sums(rows)
    return total("cost") + round(price.of(total("late_gpu_ms") / 1000) * MICRO)


def _saved_cost(rows: Sequence[UsageRow]) -> float | None:
    """What the answers that were not generated would have cost. GPU time by the tokens of the answers alone."""
    saved = 0.0
    for model in {row.model for row in rows}:
        total = _sums([row for row in rows if row.model == model])
        if total("saved_cost") or not total("saved_output_tokens"):
            saved += total("saved_cost")
        elif not total("output_tokens"):
            return None
        else:
            saved += total("saved_output_tokens") * total("cost") / total("output_tokens")
    return round(saved) / MICRO


def _sums(rows: Sequence[UsageRow]) -> Callable[[str], int]:
    return lambda name: sum(row.measures.get(name, 0) for row in rows)
