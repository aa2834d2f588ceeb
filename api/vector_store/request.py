"""What callers ask of vector stores, with OpenAI's rules, and its JSON Schemas. Pure.

Called by the routes of vector stores. Every refusal is a `BadRequest` that names the field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from api.http.metadata import METADATA, check_metadata
from eventing.errors import BadRequest, InvalidJob
from eventing.store.vector_store.query import parse_query
from eventing.store.vector_store.record import Chunking, FileSettings, StoreSettings, is_file_id

MOST_OF_BATCH: Final = 2000
_NAME_CHARACTERS: Final = 256
_LONGEST_DAYS: Final = 365
_SIZES: Final = range(100, 4097)
_EXPIRES_AFTER: Final = {
    "type": ["object", "null"],
    "required": ["anchor", "days"],
    "properties": {
        "anchor": {"const": "last_active_at"},
        "days": {"type": "integer", "minimum": 1, "maximum": _LONGEST_DAYS},
    },
}
_ATTRIBUTES: Final = {
    "type": ["object", "null"],
    "maxProperties": 16,
    "propertyNames": {"maxLength": 64},
    "additionalProperties": {"type": ["string", "number", "boolean"], "maxLength": 512},
}
_CHUNKING: Final = {
    "type": ["object", "null"],
    "required": ["type"],
    "properties": {
        "type": {"enum": ["auto", "static"]},
        "static": {
            "type": "object",
            "required": ["max_chunk_size_tokens", "chunk_overlap_tokens"],
            "properties": {
                "max_chunk_size_tokens": {
                    "type": "integer",
                    "minimum": _SIZES.start,
                    "maximum": _SIZES.stop - 1,
                },
                "chunk_overlap_tokens": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "at most half of max_chunk_size_tokens",
                },
            },
        },
    },
}
_FILE_IDS: Final = {"type": "array", "items": {"type": "string"}, "maxItems": MOST_OF_BATCH}
_NAME: Final = {"type": ["string", "null"], "maxLength": _NAME_CHARACTERS}
STORE_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": _NAME,
        "description": _NAME,
        "file_ids": _FILE_IDS,
        "chunking_strategy": _CHUNKING,
        "expires_after": _EXPIRES_AFTER,
        "metadata": METADATA,
    },
}
STORE_UPDATE_SCHEMA: Final = {
    "type": "object",
    "properties": {"name": _NAME, "expires_after": _EXPIRES_AFTER, "metadata": METADATA},
}
FILE_SCHEMA: Final = {
    "type": "object",
    "required": ["file_id"],
    "properties": {
        "file_id": {"type": "string"},
        "attributes": _ATTRIBUTES,
        "chunking_strategy": _CHUNKING,
    },
}
FILE_UPDATE_SCHEMA: Final = {
    "type": "object",
    "required": ["attributes"],
    "properties": {"attributes": _ATTRIBUTES},
}
BATCH_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "file_ids": _FILE_IDS,
        "files": {"type": "array", "items": FILE_SCHEMA, "maxItems": MOST_OF_BATCH},
        "attributes": _ATTRIBUTES,
        "chunking_strategy": _CHUNKING,
    },
}


@dataclass(frozen=True, slots=True)
class FileWanted:
    """A file that is to be added. Its name is not known yet."""

    file_id: str
    settings: FileSettings

    def named(self, filename: str) -> FileSettings:
        """Its settings, with its name."""
        return replace(self.settings, filename=filename)


def store_settings(body: Mapping[str, Any], before: StoreSettings | None = None) -> StoreSettings:
    """The settings that `body` asks for; what it does not name stays as `before`."""
    settings = before or StoreSettings()
    if "name" in body:
        settings = replace(settings, name=_text(body["name"], "name") or "")
    if "description" in body and before is None:
        settings = replace(settings, description=_text(body["description"], "description"))
    if "metadata" in body:
        settings = replace(settings, metadata=_metadata(body["metadata"]))
    if "expires_after" in body:
        settings = replace(settings, expires_after_days=_days(body["expires_after"]))
    return settings


def store_files(body: Mapping[str, Any]) -> list[FileWanted]:
    """The files that a new vector store is to hold."""
    chunking = chunking_of(body.get("chunking_strategy"))
    ids = _file_ids(body.get("file_ids") or [], "file_ids")
    return [FileWanted(id_, FileSettings(chunking=chunking)) for id_ in ids]


def file_wanted(body: Any, where: str = "") -> FileWanted:
    """One file to add."""
    if not isinstance(body, Mapping):
        raise BadRequest(f"{where or 'body'} must be an object", where or "body")
    prefix = f"{where}." if where else ""
    (file_id,) = _file_ids([body.get("file_id")], f"{prefix}file_id", is_one=True)
    settings = FileSettings(
        attributes=attributes_of(body.get("attributes"), f"{prefix}attributes"),
        chunking=chunking_of(body.get("chunking_strategy"), f"{prefix}chunking_strategy"),
    )
    return FileWanted(file_id, settings)


def batch_files(body: Mapping[str, Any]) -> list[FileWanted]:
    """The files of a batch, each once."""
    ids, files = body.get("file_ids"), body.get("files")
    if (ids is None) == (files is None):
        raise BadRequest("give either file_ids or files", "file_ids")
    if files is not None:
        if not isinstance(files, list) or not 1 <= len(files) <= MOST_OF_BATCH:
            raise BadRequest(f"files must be a list of 1 to {MOST_OF_BATCH}", "files")
        wanted = [file_wanted(one, f"files[{place}]") for place, one in enumerate(files)]
    else:
        settings = FileSettings(
            attributes=attributes_of(body.get("attributes"), "attributes"),
            chunking=chunking_of(body.get("chunking_strategy")),
        )
        wanted = [FileWanted(id_, settings) for id_ in _file_ids(ids, "file_ids")]
    if not wanted:
        raise BadRequest("file_ids must name a file", "file_ids")
    return list({each.file_id: each for each in wanted}.values())


def attributes_of(value: Any, where: str = "attributes") -> dict[str, str | float | bool]:
    """At most 16 texts, numbers and booleans."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > 16:
        raise BadRequest(f"{where} must be an object of at most 16 values", where)
    for name, each in value.items():
        if len(name) > 64 or name.startswith("torpor."):
            message = f"{where}: a name may have 64 characters, and not begin with torpor."
            raise BadRequest(message, where)
        if not isinstance(each, str | int | float | bool):
            message = f"{where}.{name} must be a text, a number or a boolean"
            raise BadRequest(message, f"{where}.{name}")
        if isinstance(each, str) and len(each) > 512:
            raise BadRequest(f"{where}.{name} may have 512 characters", f"{where}.{name}")
    return dict(value)


def chunking_of(value: Any, where: str = "chunking_strategy") -> Chunking:
    """800 tokens with 400 of overlap unless `static` says otherwise."""
    if value is None:
        return Chunking()
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "auto":
        return Chunking()
    if kind != "static":
        raise BadRequest(f"{where}.type must be auto or static", f"{where}.type")
    static = value.get("static")
    if not isinstance(static, Mapping):
        raise BadRequest(f"{where}.static must be an object", f"{where}.static")
    size = _whole(static, "max_chunk_size_tokens", f"{where}.static", _SIZES)
    half = range(size // 2 + 1)
    overlap = _whole(static, "chunk_overlap_tokens", f"{where}.static", half)
    return Chunking(size=size, overlap=overlap)


def _whole(value: Mapping[str, Any], name: str, where: str, allowed: range) -> int:
    number = value.get(name)
    if isinstance(number, bool) or not isinstance(number, int) or number not in allowed:
        message = f"{where}.{name} must be a whole number from {allowed.start} to {allowed[-1]}"
        raise BadRequest(message, f"{where}.{name}")
    return number


def _file_ids(value: Any, where: str, *, is_one: bool = False) -> Sequence[str]:
    if not isinstance(value, list) or len(value) > MOST_OF_BATCH:
        raise BadRequest(f"{where} must be a list of at most {MOST_OF_BATCH} ids", where)
    for place, each in enumerate(value):
        if not isinstance(each, str) or not is_file_id(each):
            name = where if is_one else f"{where}[{place}]"
            raise BadRequest(f"{name} must be the id of a file", name)
    return value


def _text(value: Any, where: str) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) > _NAME_CHARACTERS):
        raise BadRequest(f"{where} must be a text of at most {_NAME_CHARACTERS} characters", where)
    return value


def _metadata(value: Any) -> dict[str, str]:
    try:
        return check_metadata(value, "metadata")
    except InvalidJob as error:
        raise BadRequest(error.message, error.field) from error


def _days(value: Any) -> int:
    name = "expires_after"
    if value is None:
        return 0
    if not isinstance(value, Mapping) or value.get("anchor") != "last_active_at":
        raise BadRequest(f"{name}.anchor must be last_active_at", f"{name}.anchor")
    return _whole(value, "days", name, range(1, _LONGEST_DAYS + 1))


_WEIGHT: Final = {"type": "number", "minimum": 0}
SEARCH_SCHEMA: Final = {
    "type": "object",
    "required": ["query"],
    "properties": {
        "query": {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": 4096},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 10},
            ]
        },
        "max_num_results": {"type": "integer", "minimum": 1, "maximum": 50, "default": 10},
        "filters": {
            "type": ["object", "null"],
            "description": "a comparison `{type, key, value}`, or `{type: and | or, filters}`",
        },
        "ranking_options": {
            "type": ["object", "null"],
            "properties": {
                "ranker": {"enum": ["auto", "default-2024-11-15", "none"]},
                "score_threshold": {"type": "number", "minimum": 0, "maximum": 1},
                "hybrid_search": {
                    "type": "object",
                    "properties": {"embedding_weight": _WEIGHT, "text_weight": _WEIGHT},
                },
            },
        },
        "rewrite_query": {
            "type": ["boolean", "null"],
            "description": "accepted; the query is searched for as it is",
        },
    },
}
_SEARCHED: Final = ("query", "max_num_results", "filters", "ranking_options")


def search_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the job that searches."""
    rewrite = body.get("rewrite_query")
    if rewrite is not None and not isinstance(rewrite, bool):
        raise BadRequest("rewrite_query must be true or false", "rewrite_query")
    asked = {name: body[name] for name in _SEARCHED if body.get(name) is not None}
    parse_query(asked.get("query"), asked)
    return asked
