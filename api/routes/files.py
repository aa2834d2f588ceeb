"""OpenAI's files: upload, list, read, forget. They carry batches in and their results out.

Called by `api.wiring`. An upload goes to disk as it comes in.
"""

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.auth.principal import Scope
from api.batch.file_store import FileCard, FileStore, new_card
from api.http.body import BodyReader
from api.http.errors import UnsupportedMedia
from api.openapi import files as docs
from api.routes.jobs import json_response, whole_number
from api.routes.route import Call, Routes
from eventing.errors import BadRequest, IdempotencyConflict, NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDeps:
    """What `/v1/files` needs."""

    files: FileStore
    uploads: BodyReader


routes: Routes[FileDeps] = Routes()

PURPOSES: Final = ("batch", "user_data", "assistants", "evals", "fine-tune", "vision")


@routes.operation("POST", "/v1/files", scope=Scope.JOBS_WRITE, doc=docs.CREATE_FILE)
async def create_file(call: Call[FileDeps]) -> Response:
    """Upload a file.

    Multipart, as OpenAI's; a batch's lines have the purpose `batch`.
    """
    form = await _form(call)
    try:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise BadRequest("file must be a file", "file")
        if not isinstance(purpose, str) or purpose not in PURPOSES:
            raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}", "purpose")
        name = (upload.filename or "upload")[:255]
        card = new_card(call.principal.tenant, name, purpose, f"file-{keyed_hex(call)}")
        card = await _saved(call, card, upload)
    finally:
        await form.close()
    return json_response(card.view())


@routes.operation("GET", "/v1/files", scope=Scope.JOBS_READ, doc=docs.LIST_FILES)
async def list_files(call: Call[FileDeps]) -> Response:
    """List files, newest first."""
    query = call.request.query_params
    limit = whole_number(query, "limit", default=10_000, least=1, most=10_000)
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise BadRequest("order must be asc or desc", "order")
    cards = await call.deps.files.cards(call.principal.tenant)
    if purpose := query.get("purpose"):
        cards = [card for card in cards if card.purpose == purpose]
    if order == "asc":
        cards.reverse()
    return json_response(page_of([card.view() for card in cards], query.get("after"), limit))


@routes.operation("GET", "/v1/files/{id}", scope=Scope.JOBS_READ, doc=docs.GET_FILE)
async def retrieve_file(call: Call[FileDeps]) -> Response:
    """Look at a file's card."""
    card = await call.deps.files.card(call.principal.tenant, call.request.path_params["id"])
    return json_response(card.view())


@routes.operation("GET", "/v1/files/{id}/content", scope=Scope.JOBS_READ, doc=docs.FILE_CONTENT)
async def read_file(call: Call[FileDeps]) -> Response:
    """Read a file's content."""
    card = await call.deps.files.card(call.principal.tenant, call.request.path_params["id"])
    return StreamingResponse(
        call.deps.files.pieces(card),
        media_type="application/octet-stream",
        headers={"content-length": str(card.bytes)},
    )


@routes.operation("DELETE", "/v1/files/{id}", scope=Scope.JOBS_WRITE, doc=docs.DELETE_FILE)
async def delete_file(call: Call[FileDeps]) -> Response:
    """Forget a file."""
    card = await call.deps.files.card(call.principal.tenant, call.request.path_params["id"])
    await call.deps.files.delete(card)
    return json_response({"id": card.id, "object": "file", "deleted": True})


async def _saved(call: Call[FileDeps], card: FileCard, upload: UploadFile) -> FileCard:
    """The file, or the one that this key's first upload made. Contents are told apart by size."""
    if "idempotency-key" in call.request.headers:
        with suppress(NotFound):
            known = await call.deps.files.card(card.tenant, card.id)
            if (known.filename, known.purpose, known.bytes) != (
                card.filename,
                card.purpose,
                upload.size,
            ):
                raise IdempotencyConflict("the same key was used before with another file", "file")
            return known
    return await call.deps.files.save(card, upload.file)


def keyed_hex(call: Call[Any]) -> str:
    """24 hex digits: of the call's Idempotency-Key among the tenant's, or random ones."""
    key = call.request.headers.get("idempotency-key", "")
    if not key:
        return secrets.token_hex(12)
    named = f"{call.principal.tenant}\0{call.request.url.path}\0{key}"
    return hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def page_of(views: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """A page in OpenAI's form. Raises `BadRequest` for an `after` that is not in the list."""
    if after:
        places = [place for place, view in enumerate(views) if view["id"] == after]
        if not places:
            raise BadRequest("after must be the id of an entry of this list", "after")
        views = views[places[0] + 1 :]
    page = views[:limit]
    return {
        "object": "list",
        "data": list(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(views) > limit,
    }


async def _form(call: Call[FileDeps]) -> FormData:
    """The multipart form, its file on disk. Raises `BadRequest` and its kin."""
    request: Request = call.request
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise UnsupportedMedia("send multipart/form-data with file and purpose", "content-type")
    stream = call.deps.uploads.stream(request)
    try:
        # Starlette's parser keeps 1 MiB of a file in memory and the rest in a temporary file.
        return await MultiPartParser(request.headers, stream, max_files=1, max_fields=8).parse()
    except MultiPartException as error:
        raise BadRequest(f"the form cannot be read: {error.message}", "body") from error
    except (KeyError, UnicodeError) as error:
        raise BadRequest("the form cannot be read", "body") from error
