"""What the OpenAPI document says of one call beyond its docstring.

Called by the modules of `api.openapi` (which write it) and `api.routes.route` (which registers it).
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final

IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
    "description": "The same key with the same body is the same call, and has the same answer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """Tag, parameters, body and answers of a call."""

    tag: str
    parameters: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)

    def extra(self) -> dict[str, Any]:
        """The `openapi_extra` of FastAPI."""
        extra: dict[str, Any] = {}
        if self.parameters:
            extra["parameters"] = list(self.parameters)
        if self.body is not None:
            extra["requestBody"] = self.body
        return extra

    def with_idempotency_key(self) -> "Doc":
        """The same, with the header that makes a call safe to make again."""
        return replace(self, parameters=(*self.parameters, IDEMPOTENCY_KEY))
