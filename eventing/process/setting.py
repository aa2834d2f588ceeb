"""Reading and validating a process's settings: an invalid value is reported in one line that names its variable.

Called by the `__main__` of every process, and by the settings classes for their types. Values that a connection or
a header would refuse later are refused at start. Messages never contain a value, which may be a password.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsError
from yarl import URL

from eventing.process.store_url import parse_store_url

_LONGEST_TOKEN: Final = 4096
"""Servers read header lines of 8 KiB."""
_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
S = TypeVar("S", bound=BaseSettings)


class WrongSetting(Exception):
    """The process must not start with these settings; the message is one line that names the variable."""


def token(text: str) -> str:
    """A bearer token. A line break at its end, which `echo` and editors put into a Secret, is removed. Raises
    `ValueError` for one that a header cannot carry.
    """
    found = text.strip()
    if len(found) > _LONGEST_TOKEN:
        raise ValueError(f"the token has {len(found)} characters, more than {_LONGEST_TOKEN}")
    if re.search(r"[^\x21-\x7e]", found):
        raise ValueError("the token holds a blank, a line break or a character outside ASCII")
    return found


def token_file(path: Path) -> str:
    """The token in a file. Raises `ValueError`, which names the file."""
    try:
        return token(path.read_text())
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"cannot read {path}: {why}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def http_url(text: str) -> str:
    """An http or https URL that can be dialled. Raises `ValueError`."""
    found = text.strip()
    try:
        url = URL(found)
        is_whole = url.scheme in ("http", "https") and bool(url.host) and bool(url.port)
    except ValueError:
        is_whole = False
    if not is_whole or url.raw_fragment or not found.isprintable() or " " in found:
        raise ValueError("write it as http://HOST[:PORT][/PATH] or https://...")
    if url.raw_user is not None or url.raw_password is not None:
        raise ValueError("a user or password does not belong into it; there are tokens")
    return found


def redis_url(text: str) -> str:
    """The address of a Redis or Valkey, or of its sentinels, passwords percent-encoded. Raises `ValueError`."""
    parse_store_url(text)
    return text.strip()


def files_url(text: str) -> str:
    """The address of a folder or an object storage, as fsspec reads it. Raises `ValueError`."""
    import fsspec  # type: ignore[import-untyped]

    scheme, is_url, _ = text.partition("://")
    try:
        if is_url:
            fsspec.get_filesystem_class(scheme)
    except (ValueError, ImportError) as error:
        raise ValueError(str(error)) from error
    return text


def _secret(judge: Any) -> AfterValidator:
    return AfterValidator(lambda secret: SecretStr(judge(secret.get_secret_value())))


def _or_none(judge: Any) -> Any:
    return lambda text: judge(text) if text.strip() else ""


def _level(value: Any) -> Any:
    level = value.upper() if isinstance(value, str) else value
    if level not in _LEVELS:
        raise ValueError("DEBUG, INFO, WARNING or ERROR")
    return level


Token = Annotated[SecretStr, _secret(token)]
RedisUrl = Annotated[SecretStr, _secret(_or_none(redis_url))]
HttpUrl = Annotated[str, AfterValidator(http_url)]
OptionalHttpUrl = Annotated[str, AfterValidator(_or_none(http_url))]
FilesUrl = Annotated[str, AfterValidator(files_url)]
LogLevel = Annotated[str, BeforeValidator(_level)]


def read(kind: type[S], **given: Any) -> S:
    """The settings, from `given` and the environment. Raises `WrongSetting`."""
    try:
        return kind(**given)
    except ValidationError as error:
        raise WrongSetting(_line(kind, error)) from None
    except SettingsError as error:  # a variable that must be JSON, and is not
        field = re.search(r'field "(\w+)"', str(error))
        name = _variable(kind, field[1] if field else "")
        raise WrongSetting(f"{name}: not JSON ({error.__cause__})") from None


def from_command_line(program: str, kind: type[S], arguments: Sequence[str]) -> S:
    """The settings of a process that has no flags but these two: `--help` and `--print-settings`
    (secrets masked) end it. Raises `WrongSetting`.
    """
    parser = _Parser(prog=program, description="Settings: TORPOR_* variables.")
    parser.add_argument("--print-settings", action="store_true", help="show them and end")
    is_shown = parser.parse_args(arguments).print_settings
    settings = read(kind)
    if is_shown:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        sys.exit(0)
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongSetting(message)


def _line(kind: type[BaseSettings], error: ValidationError) -> str:
    """Every problem, in one line."""
    found = error.errors(include_input=False, include_url=False)
    return "; ".join(_problem(kind, each["loc"], each["msg"]) for each in found)


def _problem(kind: type[BaseSettings], place: Sequence[int | str], message: str) -> str:
    name = _variable(kind, str(place[0]) if place else "")
    inner = ".".join(map(str, place[1:]))
    said = " ".join(message.removeprefix("Value error, ").split())
    return f"{name}: {inner}: {said}" if inner else f"{name}: {said}"


def _variable(kind: type[BaseSettings], field: str) -> str:
    return f"{kind.model_config.get('env_prefix', '')}{field}".upper() if field else "settings"
