"""Chat completions that were created with `store: true`.

Called by `api.wiring`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import QueryParams
from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.metadata import METADATA
from api.http.parameter import AFTER, LIMIT, Choice, Parameter
from api.job.stored_completions import StoredCompletion, StoredCompletions
from api.openapi.operation import Body
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.openai import ChatCompletion
from api.view.outcome import answer_of
from api.view.page import Deleted, Page, page_of
from eventing.errors import InvalidJob
from eventing.job.store import JobIntake


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCompletionDeps:
    """The dependencies of stored completions."""

    completions: StoredCompletions
    store: JobIntake


routes: Routes[StoredCompletionDeps] = Routes("openai")

_PATH: Final = "/v1/chat/completions/{id}"
_ORDER: Final = Choice("order", "By age; oldest first is `asc`", words=("asc", "desc"))
_MODEL: Final = Parameter("model", "Only those of this model")
_PAIR: Final = re.compile(r"metadata\[(.+)\]\Z")
_UPDATE: Final = Body(
    "StoredCompletionUpdate",
    {"type": "object", "required": ["metadata"], "properties": {"metadata": METADATA}},
)


class StoredChatCompletion(ChatCompletion):
    """The answer as it was given."""

    metadata: Mapping[str, str]


class CompletionList(Page):
    """A page of answers."""

    data: list[StoredChatCompletion]


class StoredMessage(TypedDict):
    """A message of the call."""

    id: str
    role: str
    content: Any
    content_parts: list[Mapping[str, Any]] | None


class MessageList(Page):
    """The messages of the call."""

    data: list[StoredMessage]


@routes.operation(
    "GET",
    "/v1/chat/completions",
    Scope.JOBS_READ,
    parameters=(LIMIT, _ORDER, AFTER, _MODEL),
    answers=CompletionList,
)
async def list_chat_completions(call: Call[StoredCompletionDeps]) -> Response:
    """List stored chat completions.

    Those created with `store: true` that have ended, oldest first; `metadata[NAME]=TEXT` asks for those with that
    pair. One call looks at 1,000 of them: a page may be short, or empty, and there may be more while it `has_more`.
    """
    query = call.request.query_params
    page, has_more = await call.deps.completions.page(
        call.principal.tenant,
        lambda each: _is_wanted(each, query),
        limit=LIMIT.of(query),
        after=query.get(AFTER.name, ""),
        is_newest_first=_ORDER.of(query) == "desc",
    )
    views = [_view(each) for each in page]
    listed = page_of(views, {}, len(views))
    return json_response(listed | {"has_more": has_more})


@routes.operation("GET", _PATH, Scope.JOBS_READ, answers=StoredChatCompletion)
async def retrieve_chat_completion(call: Call[StoredCompletionDeps]) -> Response:
    """Retrieve a stored chat completion."""
    return json_response(_view(await _own(call)))


@routes.operation(
    "POST", _PATH, Scope.JOBS_WRITE, body=_UPDATE, answers=StoredChatCompletion, replays=True
)
async def update_chat_completion(call: Call[StoredCompletionDeps]) -> Response:
    """Change the metadata of a stored chat completion."""
    body = await call.read_object()
    if "metadata" not in body:
        raise InvalidJob("metadata must be an object of texts", "metadata")
    own = await _own(call)
    return json_response(_view(await call.deps.completions.set_metadata(own, body["metadata"])))


@routes.operation("DELETE", _PATH, Scope.JOBS_WRITE, answers=Deleted)
async def delete_chat_completion(call: Call[StoredCompletionDeps]) -> Response:
    """Delete a stored chat completion, and its job with it."""
    own = await _own(call)
    await call.deps.store.delete(own.job.id)
    name = str(answer_of(own.job)["id"])
    return json_response({"id": name, "object": "chat.completion.deleted", "deleted": True})


@routes.operation(
    "GET",
    f"{_PATH}/messages",
    Scope.JOBS_READ,
    parameters=(LIMIT, _ORDER, AFTER),
    answers=MessageList,
)
async def list_chat_completion_messages(call: Call[StoredCompletionDeps]) -> Response:
    """List the messages that a stored chat completion answered."""
    query = call.request.query_params
    own = await _own(call)
    messages = [
        _message(message, f"{answer_of(own.job)['id']}-{number}")
        for number, message in enumerate(own.job.request.body["messages"])
    ]
    if _ORDER.of(query) == "desc":
        messages.reverse()
    return json_response(page_of(messages, query, LIMIT.of(query), "a message of this completion"))


async def _own(call: Call[StoredCompletionDeps]) -> StoredCompletion:
    return await call.deps.completions.get(call.principal.tenant, call.request.path_params["id"])


def _view(found: StoredCompletion) -> dict[str, Any]:
    return {**answer_of(found.job), "metadata": found.metadata}


def _message(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    told = {"content": None if parts is not None else content, "content_parts": parts}
    return {**message, "id": name, **told}


def _is_wanted(found: StoredCompletion, query: QueryParams) -> bool:
    """Whether it has the model and the pairs that the query asks for."""
    if (model := query.get("model")) is not None and found.job.request.model != model:
        return False
    pairs = [(match[1], text) for name, text in query.multi_items() if (match := _PAIR.match(name))]
    return all(found.metadata.get(name) == text for name, text in pairs)
