"""`/v1/organization`: what a tenant used and what it cost, by day, in the form of OpenAI's usage API, or CSV.

Called by `api.wiring`. A caller sees its own tenant only. Must not know how usage is counted.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Literal, NotRequired

from starlette.datastructures import QueryParams
from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.described import described
from api.http.parameter import Choice, Parameter, Whole, Words, listed
from api.openapi.operation import Text
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from eventing.errors import BadRequest
from eventing.job.job import RUNNABLE_URLS, JobState
from eventing.telemetry.cost import ANSWER, KINDS, MICRO, Price
from eventing.telemetry.usage import DAY_S, UsageRecords, UsageRow

_MOST_DAYS: Final = 31
_LATEST_S: Final = 2**40
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""
_CSV: Final = "text/csv"
_EMBEDDINGS_URL: Final = "/v1/embeddings"
_COMPLETION_URLS: Final = frozenset(RUNNABLE_URLS) - {_EMBEDDINGS_URL}


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationDeps:
    """The dependencies of `/v1/organization`."""

    records: UsageRecords
    currency: str
    price: Price


class GroupBy(StrEnum):
    """What results are told apart by."""

    KEY = "api_key_id"
    MODEL = "model"


class CostGroupBy(StrEnum):
    """What costs are told apart by."""

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

    object: Literal["organization.usage.completions.result", "organization.usage.embeddings.result"]
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


START: Final = Whole(
    "start_time",
    "First second; a whole day of UTC counts. Without it, so many days as `limit` says up to now",
    least=0,
    most=_LATEST_S,
    default=-1,
)
END: Final = Whole(
    "end_time",
    "First second that does not count; now by default",
    least=0,
    most=_LATEST_S,
    default=-1,
)
DAYS: Final = Whole("limit", "Days of a page", least=1, most=_MOST_DAYS, default=7)
PAGE: Final = Parameter("page", "`next_page` of the page before")
WIDTH: Final = Choice("bucket_width", "Only days are kept", words=("1d",))
FORMAT: Final = Choice("format", "As `Accept: text/csv`", words=("json", "csv"))
MODELS: Final = Parameter("models", "Only these: repeated, or separated by commas")
KEY_IDS: Final = Parameter("api_key_ids", "Only of these: repeated, or separated by commas")
GROUPS: Final = Words("group_by", "What results are told apart by", kind=GroupBy)
COST_GROUPS: Final = Words("group_by", "What results are told apart by", kind=CostGroupBy)
_PARAMETERS: Final = (START, END, WIDTH, DAYS, PAGE, MODELS, KEY_IDS, FORMAT)
_TABLE: Final = Text("As a table", _CSV, "start_time,end_time,api_key_id,model,input_tokens\n")

routes: Routes[OrganizationDeps] = Routes("organization")

_Row = Mapping[str, Any]
_View = Callable[[OrganizationDeps, Sequence[UsageRow], Sequence[str]], list[dict[str, Any]]]


@routes.operation(
    "GET",
    "/v1/organization/usage/completions",
    Scope.JOBS_READ,
    parameters=(*_PARAMETERS, GROUPS),
    answers={200: (UsagePage, _TABLE)},
)
async def get_completions_usage(call: Call[OrganizationDeps]) -> Response:
    """Get what your tenant used by day: chats, completions and responses.

    In the form of OpenAI's usage API; `Accept: text/csv` or `format=csv` gives a table. Each job counts once, on the
    day (UTC) on which it ended, also after it was deleted.
    """
    groups = [str(each) for each in GROUPS.of(call.request.query_params)]
    return await _page(call, groups, lambda row: row.url in _COMPLETION_URLS, _completions)


@routes.operation(
    "GET",
    "/v1/organization/usage/embeddings",
    Scope.JOBS_READ,
    parameters=(*_PARAMETERS, GROUPS),
    answers={200: (UsagePage, _TABLE)},
)
async def get_embeddings_usage(call: Call[OrganizationDeps]) -> Response:
    """Get what your tenant used by day: embeddings."""
    groups = [str(each) for each in GROUPS.of(call.request.query_params)]
    return await _page(call, groups, lambda row: row.url == _EMBEDDINGS_URL, _embeddings)


@routes.operation(
    "GET",
    "/v1/organization/costs",
    Scope.JOBS_READ,
    parameters=(*_PARAMETERS, COST_GROUPS),
    answers={200: (CostPage, _TABLE)},
)
async def get_costs(call: Call[OrganizationDeps]) -> Response:
    """Get what your tenant's jobs cost by day: what is counted against a budget."""
    groups = [str(each) for each in COST_GROUPS.of(call.request.query_params)]
    return await _page(call, groups, lambda row: True, _costs)


async def _page(
    call: Call[OrganizationDeps],
    groups: Sequence[str],
    is_asked: Callable[[UsageRow], bool],
    view: _View,
) -> Response:
    query, deps = call.request.query_params, call.deps
    WIDTH.of(query)
    is_table = FORMAT.of(query) == "csv" or _wants_table(call.request.headers.get("accept", ""))
    days, following = _days(query, await deps.records.today())
    models, key_ids = listed(query, MODELS.name), listed(query, KEY_IDS.name)
    found = await deps.records.days(call.principal.tenant, days)
    buckets = []
    for day, rows in zip(days, found, strict=True):
        asked = [
            row
            for row in rows
            if is_asked(row)
            and (not models or row.model in models)
            and (not key_ids or row.key_id in key_ids)
        ]
        results = [
            named | result
            for named, group in _grouped(asked, groups)
            for result in view(deps, group, groups)
        ]
        span = {"start_time": day * DAY_S, "end_time": (day + 1) * DAY_S}
        buckets.append({"object": "bucket", **span, "results": results})
    if is_table:
        columns = ["start_time", "end_time", *GroupBy, *_flat(view(deps, (), ())[0])]
        return _table(call, columns, buckets, following)
    return json_response(
        {
            "object": "page",
            "data": buckets,
            "has_more": following is not None,
            "next_page": following,
        }
    )


def _days(query: QueryParams, today: int) -> tuple[range, str | None]:
    """The days of the page that is asked for, and the name of the next page, if there is one."""
    limit, start_s, end_s = DAYS.of(query), START.of(query), END.of(query)
    last = today if end_s < 0 else min(today, (end_s - 1) // DAY_S)
    first = max(last - limit + 1, 0) if start_s < 0 else start_s // DAY_S
    if page := query.get(PAGE.name):
        if not (page.isascii() and page.isdigit() and len(page) < 8):
            raise BadRequest("page must be a next_page of this list", PAGE.name)
        first = max(int(page), first)
    after = min(first + limit, last + 1)
    return range(first, max(after, first)), str(after) if first < after <= last else None


def _grouped(
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


def _completions(
    deps: OrganizationDeps, rows: Sequence[UsageRow], groups: Sequence[str]
) -> list[dict[str, Any]]:
    return [_usage(deps, rows, "organization.usage.completions.result")]


def _embeddings(
    deps: OrganizationDeps, rows: Sequence[UsageRow], groups: Sequence[str]
) -> list[dict[str, Any]]:
    return [_usage(deps, rows, "organization.usage.embeddings.result")]


def _usage(deps: OrganizationDeps, rows: Sequence[UsageRow], kind: str) -> dict[str, Any]:
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
        "gpu_seconds": round(total("gpu_ms") * deps.price.gpus / 1000, 3),
        "cost": _cost(deps, rows) / MICRO,
    }


def _cost(deps: OrganizationDeps, rows: Sequence[UsageRow]) -> int:
    """In millionths; GPU time that was charged after its job's end at today's price."""
    total = _sums(rows)
    return total("cost") + round(deps.price.of(total("late_gpu_ms") / 1000) * MICRO)


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


def _costs(
    deps: OrganizationDeps, rows: Sequence[UsageRow], groups: Sequence[str]
) -> list[dict[str, Any]]:
    """One result, or one for each line item that there is."""
    total = _sums(rows)
    cost = _cost(deps, rows)
    amounts: dict[str | None, int] = {None: cost}
    if CostGroupBy.LINE_ITEM in groups:
        beside = {kind: total(f"{kind}_cost") for kind in KINDS[1:]}
        amounts = {ANSWER: cost - sum(beside.values())}
        amounts.update(beside)
    return [
        {
            "object": "organization.costs.result",
            "amount": {"value": amount / MICRO, "currency": deps.currency},
            "line_item": item,
            "project_id": None,
        }
        for item, amount in amounts.items()
        if amount or item in (None, ANSWER)
    ]


def _sums(rows: Sequence[UsageRow]) -> Callable[[str], int]:
    return lambda name: sum(row.measures.get(name, 0) for row in rows)


def _wants_table(accept: str) -> bool:
    """True when CSV is the first of the two forms that a caller names."""
    named = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    return next((each for each in named if each in (_CSV, "application/json")), "") == _CSV


def _table(
    call: Call[OrganizationDeps],
    columns: Sequence[str],
    buckets: Sequence[Mapping[str, Any]],
    following: str | None,
) -> Response:
    """One line a result. `Link` names the next page."""
    lines = [
        {
            "start_time": _day(bucket["start_time"]),
            "end_time": _day(bucket["end_time"]),
            **_flat(each),
        }
        for bucket in buckets
        for each in bucket["results"]
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    headers = {}
    if following is not None:
        url = call.request.url.include_query_params(page=following)
        headers["link"] = f'<{url.path}?{url.query}>; rel="next"'
    return Response(text.getvalue(), media_type=f"{_CSV}; charset=utf-8", headers=headers)


def _flat(result: Mapping[str, Any], prefix: str = "") -> _Row:
    """The fields that can have a value, inner ones after the name of their object."""
    flat: dict[str, Any] = {}
    for name, value in result.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}_")
        elif name not in ("object", "project_id", "user_id", "batch"):
            flat[prefix + name] = value
    return flat


def _cell(value: Any) -> Any:
    """A text never starts a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _day(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).date().isoformat()
