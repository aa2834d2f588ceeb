"""Reading records that another version wrote: during an upgrade both versions run beside each other.

Called by every reader of a stored record. An unknown field is ignored. When a change alters the meaning of known
fields, the writer raises the record's `v` above `VERSION`, and an older reader refuses the record instead of
misreading it.
"""

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar

from eventing.errors import NewerRecord

VERSION: Final = 1
"""Version of every record; a record without `v` has version 1."""

_Enum = TypeVar("_Enum", bound=StrEnum)


def known_fields(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `record` that the dataclass `kind` has. Raises `NewerRecord`."""
    check_version(record.get("v"))
    names = _names(kind)
    return {name: value for name, value in record.items() if name in names}


@cache
def _names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


def known_value(kind: type[_Enum], text: str) -> _Enum:
    """`text` as a member of `kind`. Raises `NewerRecord` for a value that this version does not know."""
    try:
        return kind(text)
    except ValueError as error:
        raise NewerRecord(f"{text!r:.40} is no {kind.__name__} of this version") from error


def check_version(version: Any) -> None:
    """Raises `NewerRecord` for a record version that this process cannot read."""
    if version is not None and int(version) > VERSION:
        raise NewerRecord(f"a record of version {int(version)}, and this process knows {VERSION}")
