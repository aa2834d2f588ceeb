"""The files of OpenAI's vector stores, alone and in batches.

Called by `api.wiring`. Adding a file sends an event; the steps index it.
"""

from collections.abc import Sequence
from typing import Final

from starlette.datastructures import QueryParams
from starlette.responses import Response

from api.auth.principal import Scope
from api.http.parameter import AFTER, LIMIT, ORDER, Words
from api.openapi.operation import Body
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.routes.vector_stores import (
    BEFORE,
    VectorStoreDeps,
    add_files,
    cut,
    named,
    own_store,
)
from api.vector_store.request import (
    BATCH_SCHEMA,
    FILE_SCHEMA,
    FILE_UPDATE_SCHEMA,
    attributes_of,
    batch_files,
    file_wanted,
)
from api.view.page import Deleted, as_page
from api.view.vector_store import (
    FileBatchView,
    FileContent,
    VectorStoreFileList,
    VectorStoreFileView,
    batch_view,
    file_view,
)
from eventing.errors import BadRequest, NotFound, ObjectGone, WrongState
from eventing.store.vector_store.record import FileStatus, VectorStore, VectorStoreFile
from eventing.store.vector_store.text_object import PIECE_CHARACTERS, text_object_name

routes: Routes[VectorStoreDeps] = Routes("vector stores")

_FILES: Final = "/v1/vector_stores/{id}/files"
_FILE: Final = "/v1/vector_stores/{id}/files/{file_id}"
_BATCHES: Final = "/v1/vector_stores/{id}/file_batches"
_BATCH: Final = "/v1/vector_stores/{id}/file_batches/{batch_id}"
_STATUS: Final = Words("filter", "Only files of these statuses", kind=FileStatus)
_PAGE: Final = (LIMIT, ORDER, AFTER, BEFORE, _STATUS)
_LONGEST_TEXT: Final = 64 * 1024 * 1024


@routes.operation(
    "POST",
    _FILES,
    Scope.JOBS_WRITE,
    body=Body("VectorStoreFileRequest", FILE_SCHEMA),
    answers=VectorStoreFileView,
    replays=True,
    refuses=(409,),
)
async def create_vector_store_file(call: Call[VectorStoreDeps]) -> Response:
    """Add a file to a vector store.

    It is indexed in the background; poll until its status is no longer `in_progress`.
    """
    wanted = file_wanted(await call.read_object())
    deps, store = call.deps, await own_store(call)
    try:
        card = await deps.files.card(store.tenant, wanted.file_id)
    except NotFound as error:
        raise BadRequest("file_id is not the id of one of your files", "file_id") from error
    await add_files(deps, store, [(wanted, card.filename)])
    return json_response(file_view(await deps.stores.file(store, wanted.file_id)))


@routes.operation("GET", _FILES, Scope.JOBS_READ, parameters=_PAGE, answers=VectorStoreFileList)
async def list_vector_store_files(call: Call[VectorStoreDeps]) -> Response:
    """List the files of a vector store, newest first."""
    store = await own_store(call)
    return await _page(call, store, await call.deps.stores.file_ids(store.id))


@routes.operation("GET", _FILE, Scope.JOBS_READ, answers=VectorStoreFileView)
async def retrieve_vector_store_file(call: Call[VectorStoreDeps]) -> Response:
    """Retrieve a file of a vector store."""
    return json_response(file_view((await _own_file(call))[1]))


@routes.operation(
    "POST",
    _FILE,
    Scope.JOBS_WRITE,
    body=Body("VectorStoreFileUpdate", FILE_UPDATE_SCHEMA),
    answers=VectorStoreFileView,
    replays=True,
)
async def update_vector_store_file(call: Call[VectorStoreDeps]) -> Response:
    """Change the attributes of a file. A search sees them a moment later."""
    body = await call.read_object()
    if "attributes" not in body:
        raise BadRequest("attributes must be an object", "attributes")
    attributes = attributes_of(body["attributes"])
    store, file = await _own_file(call)
    note = await call.deps.stores.set_file(store, file, file.settings.with_attributes(attributes))
    await call.deps.events.send(note)
    return json_response(file_view(await call.deps.stores.file(store, file.id)))


@routes.operation("DELETE", _FILE, Scope.JOBS_WRITE, answers=Deleted)
async def delete_vector_store_file(call: Call[VectorStoreDeps]) -> Response:
    """Take a file out of a vector store. The file itself stays."""
    deps, store = call.deps, await own_store(call)
    file_id = call.request.path_params["file_id"]
    await deps.events.send(await deps.stores.remove_file(store, file_id))
    return json_response({"id": file_id, "object": "vector_store.file.deleted", "deleted": True})


@routes.operation(
    "GET", f"{_FILE}/content", Scope.JOBS_READ, answers=FileContent, refuses=(400, 410)
)
async def read_vector_store_file(call: Call[VectorStoreDeps]) -> Response:
    """Retrieve the text of a file, as it was read out of it."""
    store, file = await _own_file(call)
    if file.status is not FileStatus.COMPLETED:
        raise WrongState(f"the file is {file.status}, not completed")
    try:
        name = text_object_name(store.id, file.id, file.generation)
        text = (await call.deps.texts.read(name, 0, _LONGEST_TEXT)).decode()
    except ObjectGone as error:
        raise ObjectGone("the text of the file is not stored any more") from error
    pieces = range(0, max(len(text), 1), PIECE_CHARACTERS)
    return json_response(
        {
            "object": "vector_store.file_content.page",
            "data": [{"type": "text", "text": text[at : at + PIECE_CHARACTERS]} for at in pieces],
            "has_more": False,
            "next_page": None,
        }
    )


@routes.operation(
    "POST",
    _BATCHES,
    Scope.JOBS_WRITE,
    body=Body("VectorStoreBatchRequest", BATCH_SCHEMA),
    answers=FileBatchView,
    replays=True,
    refuses=(409,),
)
async def create_vector_store_file_batch(call: Call[VectorStoreDeps]) -> Response:
    """Add up to 2,000 files to a vector store."""
    wanted = batch_files(await call.read_object())
    deps, store = call.deps, await own_store(call)
    files = await named(deps, store.tenant, wanted, "file_ids")
    batch = await deps.stores.create_batch(store, len(files))
    await add_files(deps, store, files, batch.id)
    return json_response(batch_view(await deps.stores.batch(store, batch.id)))


@routes.operation("GET", _BATCH, Scope.JOBS_READ, answers=FileBatchView)
async def retrieve_vector_store_file_batch(call: Call[VectorStoreDeps]) -> Response:
    """Retrieve a batch of files."""
    store = await own_store(call)
    batch = await call.deps.stores.batch(store, call.request.path_params["batch_id"])
    return json_response(batch_view(batch))


@routes.operation("POST", f"{_BATCH}/cancel", Scope.JOBS_WRITE, answers=FileBatchView)
async def cancel_vector_store_file_batch(call: Call[VectorStoreDeps]) -> Response:
    """Cancel a batch of files. Those that are indexed stay."""
    deps, store = call.deps, await own_store(call)
    batch = await deps.stores.batch(store, call.request.path_params["batch_id"])
    return json_response(batch_view(await deps.stores.cancel_batch(store, batch)))


@routes.operation(
    "GET", f"{_BATCH}/files", Scope.JOBS_READ, parameters=_PAGE, answers=VectorStoreFileList
)
async def list_vector_store_file_batch_files(call: Call[VectorStoreDeps]) -> Response:
    """List the files of a batch, newest first."""
    store = await own_store(call)
    batch = await call.deps.stores.batch(store, call.request.path_params["batch_id"])
    return await _page(call, store, await call.deps.stores.batch_file_ids(batch))


async def _own_file(call: Call[VectorStoreDeps]) -> tuple[VectorStore, VectorStoreFile]:
    store = await own_store(call)
    return store, await call.deps.stores.file(store, call.request.path_params["file_id"])


async def _page(
    call: Call[VectorStoreDeps], store: VectorStore, file_ids: Sequence[str]
) -> Response:
    """A page of a vector store's files, of the statuses that the query names."""
    query: QueryParams = call.request.query_params
    statuses, limit = _STATUS.of(query), LIMIT.of(query)
    is_ascending = ORDER.of(query) == "asc"
    if not statuses:
        page, has_more = cut(file_ids, query, limit, is_ascending=is_ascending)
        found = await call.deps.stores.files(store.id, page)
        return json_response(as_page([file_view(each) for each in found], has_more=has_more))
    every = await call.deps.stores.files(store.id, file_ids)
    kept = {each.id: each for each in every if each.status in statuses}
    page, has_more = cut(list(kept), query, limit, is_ascending=is_ascending)
    return json_response(as_page([file_view(kept[file_id]) for file_id in page], has_more=has_more))
