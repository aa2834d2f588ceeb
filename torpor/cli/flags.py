"""Command-line flags generated from a settings class, so that each setting is defined once.

Called by commands with many options. Every field becomes a flag with its name, its docstring as help, its default,
and its `TORPOR_*` variable; pydantic parses and checks the ranges.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from torpor.cli.errors import UsageError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings

S = TypeVar("S", bound="BaseSettings")


def with_flags(
    settings: "type[BaseSettings]", *, switches: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the decorated `command(**flags)` one optional flag for each field; missing ones are passed as None.
    `switches` are additional flags, off by default, with their help.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [_parameter(name, field) for name, field in settings.model_fields.items()]
        parameters += [_switch(name, text) for name, text in switches.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def with_options(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the decorated `command(**given)` one option for each field of the dataclass `options`, whose annotations
    are typer's.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in fields(options)
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def build(settings: type[S], **flags: Any) -> S:
    """Settings from flags, then variables, then defaults. Raises `UsageError` naming every invalid one, with its
    range.
    """
    from pydantic import ValidationError

    try:
        return settings(**{name: value for name, value in flags.items() if value not in (None, [])})
    except ValidationError as error:
        raise UsageError("; ".join(map(_wrong, error.errors()))) from error


def _wrong(error: Any) -> str:
    """One error; an error of several fields together names them itself."""
    text = str(error["msg"]).removeprefix("Value error, ")
    return (
        f"{_flag(str(error['loc'][0]))}: {text} (got {error['input']!r})" if error["loc"] else text
    )


def _switch(name: str, text: str) -> inspect.Parameter:
    option = typer.Option(False, _flag(name), help=text)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool)


def _parameter(name: str, field: "FieldInfo") -> inspect.Parameter:
    is_switch = field.annotation is bool
    is_several = isinstance(field.default, tuple)
    is_shown = field.default_factory is None and field.default is not None
    default = (",".join(field.default) if is_several else str(field.default)) if is_shown else ""
    option = typer.Option(
        None,
        f"{_flag(name)}/--no-{_flag(name)[2:]}" if is_switch else _flag(name),
        *_extra(field).get("flags", ()),
        help=f"{field.description or ''} [TORPOR_{name.upper()}]",
        rich_help_panel=_extra(field).get("panel"),
        show_default=default or False,
        metavar=None if is_switch else _metavar(field),
    )
    kind: Any = bool if is_switch else list[str] if is_several else str
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _extra(field: "FieldInfo") -> dict[str, Any]:
    """A setting's metadata for its flag: other names, and its panel in the help."""
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, Mapping) else {}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(field: "FieldInfo") -> str:
    if isinstance(field.default, tuple):
        return "text"
    members = getattr(field.annotation, "__members__", None)
    if members:
        return "|".join(member.value for member in members.values())
    return getattr(field.annotation, "__name__", "text").replace("SecretStr", "url")
