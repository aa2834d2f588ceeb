"""Command-line flags out of a settings class, so that a setting is written down once.

Called by the commands with many options. Every field becomes a flag with its name, its docstring as
help, its default, and its `TORPOR_*` variable; parsing and ranges stay pydantic's.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from torpor.cli.errors import UserError

S = TypeVar("S", bound=BaseSettings)


def with_flags(
    settings: type[BaseSettings],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the decorated `command(**flags)` one optional flag a field; only those that were given
    are passed.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [_parameter(name, field) for name, field in settings.model_fields.items()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def with_options(options: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give the decorated `command(**given)` one option a field of the dataclass `options`, whose
    annotations are typer's: a command of many options then has one value to hand around.
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
    """Settings from flags, then variables, then defaults. Raises `UserError` naming every wrong
    one, with its range.
    """
    try:
        return settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        wrong = [
            f"{_flag(str(e['loc'][0]))}: {e['msg']} (got {e['input']!r})" for e in error.errors()
        ]
        raise UserError("; ".join(wrong)) from error


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    is_switch = field.annotation is bool
    default = "" if field.default is None else str(field.default)
    option = typer.Option(
        None,
        f"{_flag(name)}/--no-{_flag(name)[2:]}" if is_switch else _flag(name),
        help=f"{field.description or ''} [TORPOR_{name.upper()}]",
        show_default=default or False,
        metavar=None if is_switch else _metavar(field),
    )
    kind = bool if is_switch else str
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _metavar(field: FieldInfo) -> str:
    members = getattr(field.annotation, "__members__", None)
    if members:
        return "|".join(member.value for member in members.values())
    return getattr(field.annotation, "__name__", "text").replace("SecretStr", "url")
