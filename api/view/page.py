"""Pages of lists, and what is answered when an entry is deleted.

Called by the modules with handlers. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from typing_extensions import TypedDict

from api.http.parameter import AFTER
from eventing.errors import BadRequest


class Page(TypedDict):
    """A page in OpenAI's form; go on with `?after=` its `last_id`."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CursorPage(TypedDict):
    """A page; go on with `?cursor=` its `next_cursor`, until that is null."""

    object: Literal["list"]
    next_cursor: str | None


class Deleted(TypedDict):
    """The object was deleted."""

    id: str
    object: str
    deleted: Literal[True]


def page_of(
    views: Sequence[Mapping[str, Any]],
    query: Mapping[str, str],
    limit: int,
    entry: str = "an entry of this list",
) -> dict[str, Any]:
    """A page in OpenAI's form. Raises `BadRequest` for an `after` that is not in the list."""
    if after := query.get(AFTER.name):
        places = [place for place, view in enumerate(views) if view["id"] == after]
        if not places:
            raise BadRequest(f"after must be the id of {entry}", "after")
        views = views[places[0] + 1 :]
    return as_page(views[:limit], has_more=len(views) > limit)


def as_page(views: Sequence[Mapping[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """These entries as a page in OpenAI's form."""
    return {
        "object": "list",
        "data": list(views),
        "first_id": views[0]["id"] if views else None,
        "last_id": views[-1]["id"] if views else None,
        "has_more": has_more,
    }
