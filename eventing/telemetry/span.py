"""What a span is to whoever opens one: two protocols, and the span that is not kept.

Called by `eventing.telemetry.trace`, which opens them, and `eventing.telemetry.trace_export`, which keeps them. Must
not know OpenTelemetry.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, Self


class Span(Protocol):
    """A span that is open. `traceparent` names it to whoever goes on; empty when there is none."""

    @property
    def traceparent(self) -> str: ...

    def set(self, **attributes: str | int | float | bool) -> None:
        """Note more about it."""


class Tracer(Protocol):
    """What opens spans."""

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


class Unkept:
    """A span that nobody keeps: hands its parent on."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def set(self, **attributes: str | int | float | bool) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


NO_SPAN: Final = Unkept("")
"""Of no trace at all."""

_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def is_well_formed(traceparent: str) -> bool:
    """True for a W3C `traceparent` of the version we know."""
    return _TRACEPARENT.fullmatch(traceparent) is not None


def is_sampled(traceparent: str) -> bool:
    """True when whoever began the trace keeps it: the lowest flag. The next one says that the
    trace id is random, and OpenTelemetry sets it on traces kept or not.
    """
    return traceparent[-1:] in "13579bdf" and traceparent != ""
