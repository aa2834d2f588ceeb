"""`/v1/organization`: what a tenant used and what it cost, by day, in the form of OpenAI's usage API, or CSV.

Called by `api.wiring`. A caller sees its own tenant only. Must not know how usage is counted.
"""

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.responses import Response

from api.auth.principal import Scope
from api.http.parameter import Choice, Parameter, Whole, Words, listed
from api.openapi.operation import Text
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.organization import (
    CostGroupBy,
    CostPage,
    GroupBy,
    UsagePage,
    cost_results,
    grouped,
    usage_result,
)
from eventing.errors import BadRequest
from eventing.job.call.moderation import MODERATION_URL
from eventing.job.job import RUNNABLE_URLS
from eventing.telemetry.cost import Price
from eventing.telemetry.usage import DAY_S, UsageRecords, UsageRow

_MOST_DAYS: Final = 31
_LATEST_S: Final = 2**40
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""
_CSV: Final = "text/csv"
_EMBEDDINGS_URL: Final = "/v1/embeddings"
_COMPLETION_URLS: Final = frozenset(RUNNABLE_URLS) - {_EMBEDDINGS_URL, MODERATION_URL}


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganizationDeps:
    """The dependencies of `/v1/organization`."""

    records: UsageRecords
    currency: str
    price: Price


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

_View = Callable[[Sequence[UsageRow]], list[dict[str, Any]]]


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
    return await _usage(call, "organization.usage.completions.result", _COMPLETION_URLS)


@routes.operation(
    "GET",
    "/v1/organization/usage/embeddings",
    Scope.JOBS_READ,
    parameters=(*_PARAMETERS, GROUPS),
    answers={200: (UsagePage, _TABLE)},
)
async def get_embeddings_usage(call: Call[OrganizationDeps]) -> Response:
    """Get what your tenant used by day: embeddings."""
    return await _usage(call, "organization.usage.embeddings.result", {_EMBEDDINGS_URL})


@routes.operation(
    "GET",
    "/v1/organization/usage/moderations",
    Scope.JOBS_READ,
    parameters=(*_PARAMETERS, GROUPS),
    answers={200: (UsagePage, _TABLE)},
)
async def get_moderations_usage(call: Call[OrganizationDeps]) -> Response:
    """Get what your tenant used by day: moderations."""
    return await _usage(call, "organization.usage.moderations.result", {MODERATION_URL})


@routes.operation(
    "GET",
    "/v1/organization/costs",
    Scope.JOBS_READ,
    parameters=(*_PARAMETERS, COST_GROUPS),
    answers={200: (CostPage, _TABLE)},
)
async def get_costs(call: Call[OrganizationDeps]) -> Response:
    """Get what your tenant's jobs cost by day: what is counted against a budget."""
    groups, deps = COST_GROUPS.of(call.request.query_params), call.deps
    by_line_item = CostGroupBy.LINE_ITEM in groups

    def view(rows: Sequence[UsageRow]) -> list[dict[str, Any]]:
        return cost_results(rows, deps.price, deps.currency, by_line_item=by_line_item)

    return await _page(call, groups, view)


async def _usage(call: Call[OrganizationDeps], kind: str, urls: Collection[str]) -> Response:
    """What calls of these `urls` used, each result an object of this `kind`."""
    price = call.deps.price

    def view(rows: Sequence[UsageRow]) -> list[dict[str, Any]]:
        return [usage_result(rows, kind, price)]

    return await _page(call, GROUPS.of(call.request.query_params), view, urls)


async def _page(
    call: Call[OrganizationDeps],
    groups: Sequence[str],
    view: _View,
    urls: Collection[str] | None = None,
) -> Response:
    """A page of days; of calls of these `urls` alone, where some are given."""
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
            if (urls is None or row.url in urls)
            and (not models or row.model in models)
            and (not key_ids or row.key_id in key_ids)
        ]
        results = [
            named | result for named, group in grouped(asked, groups) for result in view(group)
        ]
        span = {"start_time": day * DAY_S, "end_time": (day + 1) * DAY_S}
        buckets.append({"object": "bucket", **span, "results": results})
    if is_table:
        columns = ["start_time", "end_time", *GroupBy, *_flat(view(())[0])]
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


def _flat(result: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
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
