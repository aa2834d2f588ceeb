"""Query parameters and headers: validation, and their entries in the OpenAPI document.

Called by the modules with handlers, which declare their parameters.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from starlette.datastructures import QueryParams

from eventing.errors import BadRequest

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Parameter:
    """Any text, in the query, in a header or in the path."""

    name: str
    means: str
    where: str = "query"

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def described(self) -> dict[str, Any]:
        """The Parameter Object of OpenAPI."""
        return {
            "name": self.name,
            "in": self.where,
            "required": self.where == "path",
            "schema": self.schema,
            "description": self.means,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole(Parameter):
    """An integer within a range."""

    least: int
    most: int
    default: int

    @property
    def schema(self) -> dict[str, Any]:
        bounds = {"type": "integer", "minimum": self.least, "maximum": self.most}
        return bounds | ({"default": self.default} if self.default >= self.least else {})

    def of(self, query: QueryParams) -> int:
        """Raises `BadRequest` naming the parameter."""
        text = query.get(self.name)
        if text is None:
            return self.default
        is_number = text.isascii() and text.isdigit() and len(text) <= len(str(self.most))
        if not is_number or not self.least <= int(text) <= self.most:
            bounds = f"from {self.least} to {self.most}"
            raise BadRequest(f"{self.name} must be a whole number {bounds}", self.name)
        return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds(Parameter):
    """Seconds; 0 by default."""

    most: float

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": 0, "maximum": self.most}

    def of(self, query: QueryParams, most: float) -> float:
        """Raises `BadRequest` naming the parameter; `most` is what this process allows."""
        text = query.get(self.name)
        if text is None:
            return 0.0
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise BadRequest(f"{self.name} must be seconds from 0 to {most:g}", self.name)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice(Parameter):
    """One of several values, the first by default."""

    words: tuple[str, ...]

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words), "default": self.words[0]}

    def of(self, query: QueryParams) -> str:
        """Raises `BadRequest` naming the parameter."""
        word = query.get(self.name, self.words[0]).lower()
        if word not in self.words:
            raise BadRequest(f"{self.name} must be {' or '.join(sorted(self.words))}", self.name)
        return word


@dataclass(frozen=True, slots=True, kw_only=True)
class Words(Parameter, Generic[E]):
    """Any of several values."""

    kind: type[E]

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string", "enum": list(self.kind)}}

    def of(self, query: QueryParams) -> list[E]:
        """Raises `BadRequest` naming the parameter."""
        named = listed(query, self.name)
        for word in named:
            if word not in list(self.kind):
                message = f"{self.name} must be one of {', '.join(self.kind)}"
                raise BadRequest(message, self.name)
        return [self.kind(word) for word in named]


def listed(query: QueryParams, name: str) -> list[str]:
    """The values of a parameter that is repeated (OpenAI's clients write `name[]` then), or separated by commas."""
    texts = [*query.getlist(name), *query.getlist(f"{name}[]")]
    return [word for text in texts for word in text.split(",") if word]


LIMIT: Final = Whole("limit", "Entries of a page", least=1, most=100, default=20)
CURSOR: Final = Parameter("cursor", "`next_cursor` of the page before")
AFTER: Final = Parameter("after", "Go on after the entry with this id")
ORDER: Final = Choice("order", "By age; newest first is `desc`", words=("desc", "asc"))
IDEMPOTENCY_KEY: Final = Parameter(
    "Idempotency-Key",
    "The same key with the same body is the same call and has the same answer; at most 255 characters",
    "header",
)
REQUEST_ID: Final = Parameter(
    "X-Request-Id", "Your own id of the call; it is in the response and in the log", "header"
)
