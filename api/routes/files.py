"""OpenAI's files: upload, list, retrieve, delete. They hold the input and the results of batches.

Called by `api.wiring`. An upload is written to disk while it is received.
"""

import hashlib
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.auth.principal import Scope
from api.batch.jsonl import JsonlCheck
from api.http.errors import FileQuotaExceeded, UnsupportedMedia
from api.http.multipart import NamedFileParser
from api.http.parameter import AFTER, IDEMPOTENCY_KEY, ORDER, Parameter, Whole
from api.openapi.examples import FILE_LINE
from api.openapi.operation import Body, Text
from api.routes.jobs import json_response
from api.routes.route import Call, Routes
from api.vector_store.indexing import IndexingEvents
from api.view.file import FileView, file_view
from api.view.page import Deleted, Page, page_of
from eventing.errors import BadRequest, InvalidJob, NotFound
from eventing.process.body import BodyReader
from eventing.store.file_store import BATCH_FILE_KEPT_S, FileCard, FileStore
from eventing.store.vector_store.store import VectorStores


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDeps:
    """The dependencies of `/v1/files`. A quota of 0 bytes is none."""

    files: FileStore
    uploads: BodyReader
    largest_bytes: int
    longest_line: int
    quota_of: Callable[[str], int]
    vector_stores: VectorStores
    events: IndexingEvents


routes: Routes[FileDeps] = Routes("files")

_SHORTEST_S: Final = 3600
_LONGEST_S: Final = 30 * 24 * 3600
PURPOSES: Final = ("batch", "user_data", "assistants", "evals", "fine-tune", "vision")
_ANCHOR: Final = {"const": "created_at"}
_KEPT: Final = {"type": "integer", "minimum": _SHORTEST_S, "maximum": _LONGEST_S}
EXPIRES_AFTER: Final = {
    "type": ["object", "null"],
    "required": ["anchor", "seconds"],
    "properties": {"anchor": _ANCHOR, "seconds": _KEPT},
}
_FORM: Final = Body(
    "FileUpload",
    {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "purpose": {"enum": list(PURPOSES)},
            "expires_after[anchor]": _ANCHOR,
            "expires_after[seconds]": _KEPT,
        },
    },
    "multipart/form-data",
)
_LIMIT: Final = Whole("limit", "Entries of a page", least=1, most=10_000, default=10_000)
_PURPOSE: Final = Parameter("purpose", "Only files for this")
_CONTENT: Final = Text("The content", "application/octet-stream", FILE_LINE)


class FileList(Page):
    """A page of files."""

    data: list[FileView]


@routes.operation(
    "POST",
    "/v1/files",
    Scope.JOBS_WRITE,
    parameters=(IDEMPOTENCY_KEY,),
    body=_FORM,
    answers=FileView,
)
async def create_file(call: Call[FileDeps]) -> Response:
    """Upload a file.

    Multipart, as at OpenAI; the purpose of a batch's lines is `batch`. With an `Idempotency-Key`, the same upload
    gives the same file again, another one 409.
    """
    tenant, files = call.principal.tenant, call.deps.files
    quota = call.deps.quota_of(tenant)
    largest = _largest(call)
    if quota:
        _check_quota(await files.used_bytes(tenant), min(largest, _declared(call)), quota)
    with files.arriving(tenant, largest if quota else 0):
        form = await _form(call)
        try:
            return json_response(file_view(await _save(call, form, quota)))
        finally:
            await form.close()


async def _save(call: Call[FileDeps], form: FormData, quota: int) -> FileCard:
    """Store the file in `form`. Raises `BadRequest` and its subclasses."""
    files, tenant = call.deps.files, call.principal.tenant
    upload, purpose = form.get("file"), form.get("purpose")
    if not isinstance(upload, UploadFile):
        raise BadRequest("file must be a file", "file")
    if not isinstance(purpose, str) or purpose not in PURPOSES:
        raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}", "purpose")
    is_batch = purpose == "batch"
    kept_s = _kept_s(form) or (BATCH_FILE_KEPT_S if is_batch else 0)
    if quota:
        used = await files.used_bytes(tenant) - _largest(call)  # that is this one, on its way
        _check_quota(used, upload.size or 0, quota)
    name = (upload.filename or "upload")[:255]
    card = files.new_card(tenant, name, purpose, f"file-{keyed_hex(call)}", kept_s=kept_s)
    check = JsonlCheck(call.deps.longest_line) if is_batch else None
    try:
        return await files.save(card, upload.file, check)
    except InvalidJob as error:  # to an upload it is what a bad form is
        raise BadRequest(error.message, error.field) from error


def _kept_s(form: FormData) -> int:
    """`expires_after[anchor]` and `expires_after[seconds]`; 0 when not set."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    return 0 if anchor is None and seconds is None else check_expires_after(anchor, seconds)


def check_expires_after(anchor: Any, seconds: Any, where: str = "expires_after") -> int:
    """The seconds that a file is kept, with OpenAI's rules. Raises `BadRequest`."""
    if anchor != "created_at":
        raise BadRequest(f"{where}.anchor must be created_at", f"{where}.anchor")
    text = str(seconds)
    is_number = not isinstance(seconds, bool) and text.isascii() and text.isdigit()
    if not is_number or len(text) > 9 or not _SHORTEST_S <= int(text) <= _LONGEST_S:
        message = f"{where}.seconds must be a whole number from {_SHORTEST_S} to {_LONGEST_S}"
        raise BadRequest(message, f"{where}.seconds")
    return int(text)


def _largest(call: Call[FileDeps]) -> int:
    """The largest size of this upload, assumed while it is received."""
    limit = call.deps.largest_bytes
    return min(_declared(call) or limit, limit)


def _declared(call: Call[FileDeps]) -> int:
    text = call.request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _check_quota(used: int, more: int, quota: int) -> None:
    if used + more > quota:
        message = (
            f"files of this tenant take {used} of {quota} bytes; delete some, or let them expire"
        )
        raise FileQuotaExceeded(message, "file")


@routes.operation(
    "GET",
    "/v1/files",
    Scope.JOBS_READ,
    parameters=(_LIMIT, AFTER, _PURPOSE, ORDER),
    answers=FileList,
)
async def list_files(call: Call[FileDeps]) -> Response:
    """List files, newest first."""
    query = call.request.query_params
    limit, order = _LIMIT.of(query), ORDER.of(query)
    cards = await call.deps.files.cards(call.principal.tenant)
    if purpose := query.get(_PURPOSE.name):
        cards = [card for card in cards if card.purpose == purpose]
    if order == "asc":
        cards.reverse()
    return json_response(page_of([file_view(card) for card in cards], query, limit))


@routes.operation("GET", "/v1/files/{id}", Scope.JOBS_READ, answers=FileView)
async def retrieve_file(call: Call[FileDeps]) -> Response:
    """Retrieve a file's metadata."""
    card = await call.deps.files.card(call.principal.tenant, call.request.path_params["id"])
    return json_response(file_view(card))


@routes.operation("GET", "/v1/files/{id}/content", Scope.JOBS_READ, answers=_CONTENT)
async def read_file(call: Call[FileDeps]) -> Response:
    """Retrieve a file's content."""
    card = await call.deps.files.card(call.principal.tenant, call.request.path_params["id"])
    return StreamingResponse(
        call.deps.files.pieces(card),
        media_type="application/octet-stream",
        headers={"content-length": str(card.bytes)},
    )


@routes.operation("DELETE", "/v1/files/{id}", Scope.JOBS_WRITE, answers=Deleted)
async def delete_file(call: Call[FileDeps]) -> Response:
    """Delete a file, and take it out of every vector store."""
    deps, tenant = call.deps, call.principal.tenant
    card = await deps.files.card(tenant, call.request.path_params["id"])
    for store in await deps.vector_stores.stores_with(tenant, card.id):
        with suppress(NotFound):  # it was taken out meanwhile
            await deps.events.send(await deps.vector_stores.remove_file(store, card.id))
    await deps.files.delete(card)
    return json_response({"id": card.id, "object": "file", "deleted": True})


def keyed_hex(call: Call[Any]) -> str:
    """24 hex digits that derive from the tenant's Idempotency-Key, or random ones."""
    key = call.request.headers.get("idempotency-key", "")
    if not key:
        return secrets.token_hex(12)
    named = f"{call.principal.tenant}\0{call.request.url.path}\0{key}"
    return hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()[:24]


async def _form(call: Call[FileDeps]) -> FormData:
    """The multipart form, with its file on disk. Raises `BadRequest` and its subclasses."""
    request: Request = call.request
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise UnsupportedMedia("send multipart/form-data with file and purpose", "content-type")
    stream = call.deps.uploads.stream(request)
    try:
        return await NamedFileParser(request.headers, stream, max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise BadRequest(f"the form cannot be read: {error.message}", "body") from error
    except (KeyError, UnicodeError) as error:
        raise BadRequest("the form cannot be read", "body") from error
