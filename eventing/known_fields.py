"""What this version knows of a record that another version wrote: during an upgrade both run beside each other.

Called by whoever reads a record that outlives a process. A field more is no error: it is left out. Where the meaning
of the others changes with it, the writer says so by a `v` above `VERSION`, and an older reader refuses instead of
guessing.
"""

from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Any, Final, TypeVar

from eventing.errors import NewerRecord

VERSION: Final = 1
"""Of every record; one without `v` is of the first."""

_Enum = TypeVar("_Enum", bound=StrEnum)


def known_fields(kind: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `record` that the dataclass `kind` has. Raises `NewerRecord`."""
    check_version(record.get("v"))
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in record.items() if name in names}


def known_value(kind: type[_Enum], text: str) -> _Enum:
    """`text` as one of `kind`. Raises `NewerRecord` for a word that this version does not know."""
    try:
        return kind(text)
    except ValueError as error:
        raise NewerRecord(f"{text!r:.40} is no {kind.__name__} of this version") from error


def check_version(version: Any) -> None:
    """Raises `NewerRecord` for the version of a record that this one cannot read."""
    if version is not None and int(version) > VERSION:
        raise NewerRecord(f"a record of version {int(version)}, and this process knows {VERSION}")
