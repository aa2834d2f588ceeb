"""The field `metadata` of jobs, batches, conversations and stores, as at OpenAI. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from eventing.errors import InvalidJob
from eventing.job.call.rule import Schema

_METADATA_PAIRS: Final = 16
_METADATA_NAME_CHARS: Final = 64
_METADATA_TEXT_CHARS: Final = 512
METADATA: Final[Schema] = {
    "type": ["object", "null"],
    "maxProperties": _METADATA_PAIRS,
    "propertyNames": {"maxLength": _METADATA_NAME_CHARS, "not": {"pattern": "^torpor\\."}},
    "additionalProperties": {"type": "string", "maxLength": _METADATA_TEXT_CHARS},
    "description": "yours to fill, as at OpenAI; names that start with `torpor.` are ours",
}


def check_metadata(value: Any, where: str) -> dict[str, str]:
    """At most 16 pairs of strings, as at OpenAI; keys that start with `torpor.` are reserved."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > _METADATA_PAIRS:
        raise InvalidJob(f"{where} must be an object of at most {_METADATA_PAIRS} texts", where)
    for name, text in value.items():
        pair = f"{where}.{name[:_METADATA_NAME_CHARS]}"
        if (length := len(name)) > (most := _METADATA_NAME_CHARS):
            raise InvalidJob(f"{pair}...: a name may have {most} characters, not {length}", pair)
        if not isinstance(text, str):
            raise InvalidJob(f"{pair} must be text", pair)
        if (length := len(text)) > (most := _METADATA_TEXT_CHARS):
            raise InvalidJob(f"{pair} may have {most} characters, not {length}", pair)
        if name.startswith("torpor."):
            raise InvalidJob(f"{pair}: names that start with torpor. are reserved", pair)
    return dict(value)
