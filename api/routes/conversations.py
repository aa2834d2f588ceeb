"""OpenAI's conversations and their items: create, retrieve, update, list, delete.

Called by `api.wiring`. What a response adds is added by the script that ends its job.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, NotRequired

from starlette.responses import Response
from typing_extensions import TypedDict

from api.auth.principal import Scope
from api.http.metadata import METADATA, check_metadata
from api.http.parameter import AFTER, LIMIT, ORDER, Parameter
from api.job.response.request import input_items
from api.openapi.operation import Body
from api.routes.files import keyed_hex
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.view.conversation import ConversationView, conversation_view, new_item_id, whole_item
from api.view.page import Deleted, Page, as_page
from eventing.errors import BadRequest, InvalidJob
from eventing.store.conversation.conversation import Conversation
from eventing.store.conversation.messages import messages_of
from eventing.store.conversation.store import Conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationDeps:
    """The dependencies of `/v1/conversations`."""

    conversations: Conversations


routes: Routes[ConversationDeps] = Routes("openai")

_MOST_ITEMS: Final = 20
_ITEMS: Final = {
    "type": ["array", "null"],
    "maxItems": _MOST_ITEMS,
    "items": {"type": "object"},
    "description": "items as in the input of a response",
}
_CREATE: Final = Body(
    "ConversationRequest",
    {"type": "object", "properties": {"items": _ITEMS, "metadata": METADATA}},
)
_UPDATE: Final = Body(
    "ConversationUpdate",
    {"type": "object", "required": ["metadata"], "properties": {"metadata": METADATA}},
)
_ADD: Final = Body(
    "ConversationItemsRequest",
    {
        "type": "object",
        "required": ["items"],
        "properties": {"items": {**_ITEMS, "type": "array", "minItems": 1}},
    },
)
_INCLUDE: Final = Parameter("include", "As at OpenAI; there is nothing here that it would add")
_PATH: Final = "/v1/conversations/{id}"
_ITEM_PATH: Final = f"{_PATH}/items/{{item_id}}"


class ConversationItem(TypedDict):
    """An item as in a response's input or output."""

    id: str
    type: str
    status: NotRequired[str]
    role: NotRequired[str]
    content: NotRequired[Any]


class ConversationItemList(Page):
    """A page of items."""

    data: list[ConversationItem]


@routes.operation(
    "POST",
    "/v1/conversations",
    Scope.JOBS_WRITE,
    body=_CREATE,
    answers=ConversationView,
    replays=True,
)
async def create_conversation(call: Call[ConversationDeps]) -> Response:
    """Create a conversation.

    With up to 20 items to begin with. It is kept for 30 days after its last change.
    """
    body = await call.read_object()
    metadata = check_metadata(body.get("metadata"), "metadata")
    name = keyed_hex(call)
    items = _new_items(body["items"], name) if body.get("items") else []
    made = await call.deps.conversations.create(
        f"conv_{name}", call.principal.tenant, metadata, items
    )
    return json_response(conversation_view(made))


@routes.operation("GET", _PATH, Scope.JOBS_READ, answers=ConversationView)
async def retrieve_conversation(call: Call[ConversationDeps]) -> Response:
    """Retrieve a conversation."""
    return json_response(conversation_view(await _own(call)))


@routes.operation(
    "POST", _PATH, Scope.JOBS_WRITE, body=_UPDATE, answers=ConversationView, replays=True
)
async def update_conversation(call: Call[ConversationDeps]) -> Response:
    """Change the metadata of a conversation."""
    body = await call.read_object()
    if "metadata" not in body:
        raise InvalidJob("metadata must be an object of texts", "metadata")
    metadata = check_metadata(body["metadata"], "metadata")
    own = await _own(call)
    await call.deps.conversations.set_metadata(own, metadata)
    return json_response(conversation_view(replace(own, metadata=metadata)))


@routes.operation("DELETE", _PATH, Scope.JOBS_WRITE, answers=Deleted)
async def delete_conversation(call: Call[ConversationDeps]) -> Response:
    """Delete a conversation, with its items and what was derived from them."""
    own = await _own(call)
    await call.deps.conversations.delete(own)
    return json_response({"id": own.id, "object": "conversation.deleted", "deleted": True})


@routes.operation(
    "POST",
    f"{_PATH}/items",
    Scope.JOBS_WRITE,
    parameters=(_INCLUDE,),
    body=_ADD,
    answers=ConversationItemList,
    replays=True,
)
async def create_conversation_items(call: Call[ConversationDeps]) -> Response:
    """Add up to 20 items at the end of a conversation."""
    body = await call.read_object()
    items = _new_items(body.get("items"), keyed_hex(call))
    own = await _own(call)
    await call.deps.conversations.append(own, items)
    return json_response(as_page(items, has_more=False))


@routes.operation(
    "GET",
    f"{_PATH}/items",
    Scope.JOBS_READ,
    parameters=(LIMIT, ORDER, AFTER, _INCLUDE),
    answers=ConversationItemList,
)
async def list_conversation_items(call: Call[ConversationDeps]) -> Response:
    """List the items of a conversation, newest first."""
    query = call.request.query_params
    limit, order = LIMIT.of(query), ORDER.of(query)
    items, has_more = await call.deps.conversations.page(
        await _own(call),
        limit=limit,
        after=query.get(AFTER.name, ""),
        is_newest_first=order == "desc",
    )
    return json_response(as_page(items, has_more=has_more))


@routes.operation(
    "GET", _ITEM_PATH, Scope.JOBS_READ, parameters=(_INCLUDE,), answers=ConversationItem
)
async def retrieve_conversation_item(call: Call[ConversationDeps]) -> Response:
    """Retrieve an item of a conversation."""
    own = await _own(call)
    item = await call.deps.conversations.item(own, call.request.path_params["item_id"])
    return json_response(item)


@routes.operation("DELETE", _ITEM_PATH, Scope.JOBS_WRITE, answers=ConversationView)
async def delete_conversation_item(call: Call[ConversationDeps]) -> Response:
    """Delete an item of a conversation. The answer is the conversation."""
    own = await _own(call)
    await call.deps.conversations.remove(own, call.request.path_params["item_id"])
    return json_response(conversation_view(own))


async def _own(call: Call[ConversationDeps]) -> Conversation:
    found = call.request.path_params["id"]
    return await call.deps.conversations.get(call.principal.tenant, found)


def _new_items(given: Any, call: str) -> list[dict[str, Any]]:
    """The items under ids of ours, which are the same when a call is repeated under its key. Raises `BadRequest` naming
    the item that is none.
    """
    if not isinstance(given, list) or not 0 < len(given) <= _MOST_ITEMS:
        raise BadRequest(f"items must be a list of 1 to {_MOST_ITEMS} items", "items")
    try:
        items = input_items(given)
        messages_of(items, "items")
    except InvalidJob as error:
        error.field = error.field.replace("input", "items", 1)
        error.message = error.message.replace("input", "items", 1)
        raise
    return [
        {**whole_item(item), "id": new_item_id(item, call, place)}
        for place, item in enumerate(items)
    ]
