"""OpenAI's vector stores: create, list, retrieve, modify, delete.

Called by `api.wiring`. The files of a vector store have their own module.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from api.auth.principal import Scope
from api.http.parameter import AFTER, LIMIT, ORDER, Parameter
from api.openapi.operation import Body
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.vector_store.indexing import IndexingEvents
from api.vector_store.request import (
    STORE_SCHEMA,
    STORE_UPDATE_SCHEMA,
    FileWanted,
    store_files,
    store_settings,
)
from api.view.page import Deleted, as_page
from api.view.vector_store import VectorStoreList, VectorStoreView, store_view
from eventing.clock import Clock
from eventing.errors import BadRequest, NotFound
from eventing.store.file_store import FileStore
from eventing.store.objects.object_store import ObjectStore
from eventing.store.vector_store.note import Note
from eventing.store.vector_store.record import VectorStore
from eventing.store.vector_store.store import VectorStores


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorStoreDeps:
    """The dependencies of `/v1/vector_stores`. `texts` has what was read out of the files."""

    stores: VectorStores
    files: FileStore
    texts: ObjectStore
    events: IndexingEvents
    clock: Clock

    @property
    def now_s(self) -> int:
        return self.clock.wall_ms() // 1000


routes: Routes[VectorStoreDeps] = Routes("vector stores")

_PATH: Final = "/v1/vector_stores/{id}"
BEFORE: Final = Parameter("before", "End before the entry with this id")


@routes.operation(
    "POST",
    "/v1/vector_stores",
    Scope.JOBS_WRITE,
    body=Body("VectorStoreRequest", STORE_SCHEMA),
    answers=VectorStoreView,
    replays=True,
)
async def create_vector_store(call: Call[VectorStoreDeps]) -> Response:
    """Create a vector store, with files or without."""
    body = await call.read_object()
    deps, tenant = call.deps, call.principal.tenant
    settings = store_settings(body)
    wanted = await named(deps, tenant, store_files(body), "file_ids")
    store = await deps.stores.create(tenant, settings)
    await add_files(deps, store, wanted)
    return await _shown(call, store.id)


@routes.operation(
    "GET",
    "/v1/vector_stores",
    Scope.JOBS_READ,
    parameters=(LIMIT, ORDER, AFTER, BEFORE),
    answers=VectorStoreList,
)
async def list_vector_stores(call: Call[VectorStoreDeps]) -> Response:
    """List vector stores, newest first."""
    query = call.request.query_params
    ids = await call.deps.stores.ids(call.principal.tenant)
    page, has_more = cut(ids, query, LIMIT.of(query), is_ascending=ORDER.of(query) == "asc")
    found = await call.deps.stores.read(page)
    return json_response(
        as_page([store_view(each, call.deps.now_s) for each in found], has_more=has_more)
    )


@routes.operation("GET", _PATH, Scope.JOBS_READ, answers=VectorStoreView)
async def retrieve_vector_store(call: Call[VectorStoreDeps]) -> Response:
    """Retrieve a vector store."""
    return await _shown(call, call.request.path_params["id"])


@routes.operation(
    "POST",
    _PATH,
    Scope.JOBS_WRITE,
    body=Body("VectorStoreUpdate", STORE_UPDATE_SCHEMA),
    answers=VectorStoreView,
    replays=True,
)
async def modify_vector_store(call: Call[VectorStoreDeps]) -> Response:
    """Change the name, the metadata or the expiry of a vector store."""
    body = await call.read_object()
    store = await own_store(call)
    settings = store_settings(body, store.settings)
    await call.deps.stores.set_settings(store, settings)
    return await _shown(call, store.id)


@routes.operation("DELETE", _PATH, Scope.JOBS_WRITE, answers=Deleted)
async def delete_vector_store(call: Call[VectorStoreDeps]) -> Response:
    """Delete a vector store with its chunks. Its files stay."""
    store = await own_store(call)
    await call.deps.events.send(await call.deps.stores.delete(store))
    return json_response({"id": store.id, "object": "vector_store.deleted", "deleted": True})


async def own_store(call: Call[VectorStoreDeps]) -> VectorStore:
    """The caller's vector store in the path. Raises `NotFound`."""
    return await call.deps.stores.get(call.principal.tenant, call.request.path_params["id"])


async def named(
    deps: VectorStoreDeps, tenant: str, wanted: Sequence[FileWanted], where: str
) -> list[tuple[FileWanted, str]]:
    """The files with their names. Raises `BadRequest` for one that is not the tenant's."""

    async def name_of(place: int, each: FileWanted) -> tuple[FileWanted, str]:
        try:
            return each, (await deps.files.card(tenant, each.file_id)).filename
        except NotFound as error:
            field = f"{where}[{place}]"
            raise BadRequest(f"{field} is not the id of one of your files", field) from error

    found = []
    for start in range(0, len(wanted), 32):
        some = enumerate(wanted[start : start + 32], start)
        found += await asyncio.gather(*(name_of(place, each) for place, each in some))
    return found


async def add_files(
    deps: VectorStoreDeps,
    store: VectorStore,
    wanted: Sequence[tuple[FileWanted, str]],
    batch_id: str = "",
) -> list[Note]:
    """Add files to a vector store, and have them indexed."""
    notes = [
        await deps.stores.add_file(store, each.file_id, each.named(filename), batch_id)
        for each, filename in wanted
    ]
    await deps.events.send(*notes)
    return notes


def cut(
    ids: Sequence[str], query: Mapping[str, str], limit: int, *, is_ascending: bool
) -> tuple[list[str], bool]:
    """A page of ids, which come oldest first, and whether there are more. Raises `BadRequest`."""
    ordered = list(ids) if is_ascending else list(reversed(ids))
    after, before = query.get(AFTER.name), query.get(BEFORE.name)
    for name, cursor in ((AFTER.name, after), (BEFORE.name, before)):
        if cursor and cursor not in ordered:
            raise BadRequest(f"{name} must be the id of an entry of this list", name)
    if after:
        ordered = ordered[ordered.index(after) + 1 :]
    if before and before in ordered:
        ordered = ordered[: ordered.index(before)]
        if not after:
            return ordered[-limit:], len(ordered) > limit
    return ordered[:limit], len(ordered) > limit


async def _shown(call: Call[VectorStoreDeps], store_id: str) -> Response:
    store = await call.deps.stores.get(call.principal.tenant, store_id)
    return json_response(store_view(store, call.deps.now_s))
