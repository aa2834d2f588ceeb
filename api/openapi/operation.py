"""How a call is described: parameters, body and answers, each by what judges or makes it.

Called by the modules with handlers, beside the handler. What follows from the path, the parameters and
the body (which refusals there are, and in which form) is worked out here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from api.http.parameter import IDEMPOTENCY_KEY, Parameter
from api.http.problem import is_openai_path

Schema = Mapping[str, Any]
SECURITY: Final = "bearer"
COMPONENTS: Final[dict[str, "type | Schema"]] = {}
"""Every schema that a call names, by its name in the document."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its name in the document, its schema, and whether it may be left out."""

    name: str
    schema: Schema
    media_type: str = "application/json"
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is no JSON, or none at all."""

    description: str
    media_type: str = ""
    example: str = ""


Answer = type | Text
"""A `TypedDict` that the handler's view fills, or text."""
Answers = Answer | Mapping[int, Answer | tuple[Answer, ...]]
"""By status; one alone is that of a 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """What the OpenAPI document says of an operation beyond its docstring. `refuses` are statuses that do not follow
    from the path, the parameters and the body.
    """

    answers: Answers
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    refuses: tuple[int, ...] = ()

    def operation(self, path: str) -> dict[str, Any]:
        """The Operation Object, without its summary and description, which are the docstring."""
        ids = [Parameter(name, f"Its {name}", "path") for name in _path_names(path)]
        answers = self.answers if isinstance(self.answers, Mapping) else {200: self.answers}
        form = "OpenAI" if is_openai_path(path) else "Problem"
        refusals = {
            str(status): {"$ref": f"#/components/responses/{form}{status}"}
            for status in sorted(self._refusals(path) - {*answers})
        }
        made: dict[str, Any] = {
            "parameters": [one.described() for one in (*ids, *self.parameters)],
            "responses": {str(status): _answer(given) for status, given in answers.items()}
            | refusals,
        }
        if self.body is not None:
            content = {self.body.media_type: {"schema": ref(self.body.name, self.body.schema)}}
            made["requestBody"] = {"required": self.body.is_required, "content": content}
        return made

    def _refusals(self, path: str) -> set[int]:
        is_keyed = IDEMPOTENCY_KEY in self.parameters
        statuses = {401, 403, 429, 503, *self.refuses}
        statuses |= {404} if "{" in path else set()
        statuses |= {400} if self.parameters or self.body else set()
        statuses |= {408, 413, 415} if self.body or is_keyed else set()
        statuses |= {409} if is_keyed else set()
        statuses |= {422} if self.body and not is_openai_path(path) else set()
        return statuses


def ref(name: str, kind: type | Schema) -> dict[str, str]:
    """A reference to the component that `kind` is."""
    COMPONENTS[name] = kind
    return {"$ref": f"#/components/schemas/{name}"}


def _path_names(path: str) -> Iterable[str]:
    """The names in braces: `{id}`, `{model:path}`."""
    return [part.partition("}")[0].partition(":")[0] for part in path.split("{")[1:]]


def _answer(given: Answer | tuple[Answer, ...]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    given = given if isinstance(given, tuple) else (given,)
    for one in given:
        if not isinstance(one, Text):
            content["application/json"] = {"schema": ref(component_name(one), one)}
        elif one.media_type:
            # What a stream of events is has no form in OpenAPI 3.1.
            is_stream = one.media_type == "text/event-stream"
            schema = {} if is_stream else {"type": "string"}
            content[one.media_type] = {"schema": schema, "example": one.example}
    first = given[0]
    said = first.description if isinstance(first, Text) else (first.__doc__ or "").split("\n")[0]
    return {"description": said, **({"content": content} if content else {})}


def component_name(kind: type) -> str:
    """The name that a person knows it by: a `JobView` shows a Job."""
    return kind.__name__.removesuffix("View")
