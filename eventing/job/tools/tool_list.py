"""The tools of a job's servers, as they were pinned before its first turn. Pure.

Written by the step `list-tools` into the record's field `tool_list`, read by the step `tools`, by what sends calls, and
by the views. A definition that changes later has another digest, and is not called for this job.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

from eventing.job.tools.call import EffectClass
from eventing.job.tools.server import SEPARATOR, Approval
from eventing.known_fields import known_fields, known_value

LONGEST_NAME: Final = 64
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedTool:
    """One tool. `name` is the model's, `tool` the server's; `digest` is that of the whole definition as it came."""

    name: str
    tool: str
    description: str = ""
    input_schema: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    effect: EffectClass = EffectClass.ONCE
    annotations: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False  #: the engine holds the arguments to the schema

    def definition(self) -> dict[str, Any]:
        """The function that the model is told of."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.input_schema),
            **({"strict": True} if self.strict else {}),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedServer:
    """One server with its tools. `approval` is the operator's; `origin` is where its calls go, and nowhere else."""

    server_label: str
    digest: str = ""
    trusted: bool = False
    approval: Approval = Approval.ALWAYS
    origin: str = ""
    tools: tuple[PinnedTool, ...] = ()
    error: str = ""  #: why it has no tools
    is_away: bool = False  #: it could not be asked; else it was refused, or has none
    mark: str = ""  #: of the job, random: what stands between two of it was said by a tool


def to_json(servers: Sequence[PinnedServer]) -> bytes:
    """The field of the record."""
    return orjson.dumps([asdict(each) for each in servers])


def pinned_servers(raw: str | bytes) -> tuple[PinnedServer, ...]:
    """The servers in a record; none for an empty text. Raises `NewerRecord`."""
    return tuple(_server(each) for each in orjson.loads(raw or "[]"))


def _server(record: Mapping[str, Any]) -> PinnedServer:
    known = known_fields(PinnedServer, record)
    known["approval"] = known_value(Approval, known.get("approval", Approval.ALWAYS))
    known["tools"] = tuple(_tool(each) for each in known.get("tools", ()))
    return PinnedServer(**known)


def _tool(record: Mapping[str, Any]) -> PinnedTool:
    known = known_fields(PinnedTool, record)
    known["effect"] = known_value(EffectClass, known.get("effect", EffectClass.ONCE))
    return PinnedTool(**known)


_DEFINES: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")


def definition_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The definition in what a server, or its operator, says of a tool: all that a model or a person is told, and what
    bounds the arguments.
    """
    return {name: tool[name] for name in _DEFINES if tool.get(name) is not None}


def definition_digest(definition: Mapping[str, Any]) -> str:
    """The digest of one tool's definition, equal however its members are ordered."""
    text = orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def list_digest(tools: Sequence[PinnedTool]) -> str:
    """The digest of a list: names and definitions, so that a renamed tool changes it; their order does not."""
    return digest_of_pairs((tool.tool, tool.digest) for tool in tools)


def digest_of_pairs(tools: Iterable[tuple[str, str]]) -> str:
    """The same of names with the digests of their definitions."""
    pairs = sorted([name, digest] for name, digest in tools)
    return hashlib.sha256(orjson.dumps(pairs)).hexdigest()


def model_name(label: str, tool: str) -> str:
    """The name that the model knows the tool by: letters, digits, hyphens and underscores, at most 64."""
    name = f"{label}{SEPARATOR}{_NOT_IN_NAMES.sub('_', tool)}"
    if len(name) <= LONGEST_NAME:
        return name
    digest = definition_digest({"name": tool})[:8]
    return f"{name[: LONGEST_NAME - 9]}_{digest}"
