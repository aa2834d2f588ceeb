"""What the OpenAPI document says of files and batches.

Called by `api.routes.files` and `api.routes.batches`.
"""

from api.openapi import examples
from api.openapi.doc import IDEMPOTENCY_KEY, Doc
from api.openapi.openai import errors
from api.openapi.operation import Schema, answer, body, parameter

_FILE: Schema = {
    "type": "object",
    "required": ["id", "object", "bytes", "filename", "purpose"],
    "properties": {"id": {"type": "string"}, "object": {"const": "file"}},
}
_FILE_ID = parameter("id", {"type": "string"}, "Id of the file", where="path", required=True)
_PAGE = (
    parameter("limit", {"type": "integer", "minimum": 1}, "Entries a page"),
    parameter("after", {"type": "string"}, "Go on after this id"),
)

_LINE = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"smollm2-135m-instruct", "messages": [{"role": "user", "content": "Say hello."}]}}'
)
CREATE_FILE = Doc(
    tag="files",
    parameters=(IDEMPOTENCY_KEY,),
    body={
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"enum": ["batch"]},
                        "expires_after[anchor]": {"const": "created_at"},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 3600,
                            "maximum": 2592000,
                        },
                    },
                    "example": {"file": _LINE, "purpose": "batch"},
                }
            }
        },
    },
    answers={
        200: answer("The file", _FILE, examples.FILE),
        **errors(400, 401, 403, 408, 409, 413, 415, 503),
    },
)
LIST_FILES = Doc(
    tag="files",
    parameters=(
        *_PAGE,
        parameter("purpose", {"type": "string"}, "Only files for this"),
        parameter("order", {"enum": ["asc", "desc"]}, "Newest first is desc"),
    ),
    answers={
        200: answer("A page of files", None, examples.listed(examples.FILE)),
        **errors(400, 401, 403, 503),
    },
)
GET_FILE = Doc(
    tag="files",
    parameters=(_FILE_ID,),
    answers={200: answer("The file", _FILE, examples.FILE), **errors(401, 403, 404, 503)},
)
FILE_CONTENT = Doc(
    tag="files",
    parameters=(_FILE_ID,),
    answers={
        200: {
            "description": "The content",
            "content": {
                "application/octet-stream": {"schema": {"type": "string"}, "example": _LINE}
            },
        },
        **errors(401, 403, 404, 503),
    },
)
DELETE_FILE = Doc(
    tag="files",
    parameters=(_FILE_ID,),
    answers={
        200: answer("It is gone", None, examples.deleted(examples.FILE)),
        **errors(401, 403, 404, 503),
    },
)

_BATCH: Schema = {
    "type": "object",
    "required": ["id", "object", "status", "request_counts"],
    "properties": {"id": {"type": "string"}, "object": {"const": "batch"}},
}
_BATCH_ID = parameter("id", {"type": "string"}, "Id of the batch", where="path", required=True)
CREATE_BATCH = Doc(
    tag="batches",
    parameters=(IDEMPOTENCY_KEY,),
    body=body(
        {
            "type": "object",
            "required": ["input_file_id", "endpoint", "completion_window"],
            "properties": {
                "input_file_id": {"type": "string"},
                "endpoint": {"type": "string"},
                "completion_window": {"const": "24h"},
                "metadata": {"type": ["object", "null"]},
                "output_expires_after": {
                    "type": ["object", "null"],
                    "properties": {
                        "anchor": {"const": "created_at"},
                        "seconds": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                },
            },
        },
        batch={
            "input_file_id": "file-0123456789abcdef01234567",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    ),
    answers={
        200: answer("The batch", _BATCH, examples.BATCH),
        **errors(400, 401, 403, 408, 409, 413, 415, 503),
    },
)
LIST_BATCHES = Doc(
    tag="batches",
    parameters=_PAGE,
    answers={
        200: answer("A page of batches", None, examples.listed(examples.BATCH)),
        **errors(400, 401, 403, 503),
    },
)
GET_BATCH = Doc(
    tag="batches",
    parameters=(_BATCH_ID,),
    answers={200: answer("The batch", _BATCH, examples.BATCH), **errors(401, 403, 404, 503)},
)
CANCEL_BATCH = GET_BATCH
