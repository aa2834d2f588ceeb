"""The interface of spans: two protocols, and the span that is not recorded.

Called by `eventing.telemetry.trace`, which opens spans, and `eventing.telemetry.trace_export`, which exports them.
Must not know OpenTelemetry.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, Self


class Span(Protocol):
    """An open span. `traceparent` identifies it to its children; empty when there is none."""

    @property
    def traceparent(self) -> str: ...

    def set(self, **attributes: str | int | float | bool) -> None:
        """Add an attribute."""


class Tracer(Protocol):
    """Opens spans."""

    def open(
        self,
        name: str,
        parent: str,
        links: Sequence[str],
        attributes: Mapping[str, Any],
        *,
        begins: bool,
    ) -> AbstractContextManager[Span]: ...

    def current(self) -> str: ...

    def link(self, traceparent: str) -> None: ...

    def close(self) -> None: ...


class NonRecordingSpan:
    """A span that is not recorded; its children get its parent."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


NO_SPAN: Final = NonRecordingSpan("")
"""A span without a trace."""

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LATER: Final = re.compile(r"(?!00|ff)[0-9a-f]{2}-([0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})(?:-.*)?")


def is_well_formed(traceparent: str) -> bool:
    """True for a W3C `traceparent` of the version we know."""
    return _TRACEPARENT.fullmatch(traceparent) is not None


def followable(traceparent: str) -> str:
    """The `traceparent` as it may be handed on; empty for one that is none. A later version's is
    read as ours, as the standard says.
    """
    if not traceparent or is_well_formed(traceparent):
        return traceparent
    if later := _LATER.fullmatch(traceparent):
        as_ours = f"00-{later[1]}"
        return as_ours if is_well_formed(as_ours) else ""
    return ""


def is_sampled(traceparent: str) -> bool:
    """True when the trace's sampled flag (the lowest bit) is set. The next bit says that the trace id is random,
    and OpenTelemetry sets it whether a trace is sampled or not.
    """
    return traceparent[-1:] in "13579bdf" and traceparent != ""
