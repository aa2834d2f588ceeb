"""The command line's use of the Python client, with errors in words for the user.

Called by the commands, through `ask`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from torpor.cli.errors import UsageError, UserError
from torpor.cli.options import DEFAULT_DATA_DIR
from torpor.client import DEFAULT_URL, AsyncClient, Unreachable
from torpor.client import TorporError as Refused
from torpor.local.data_dir import find_addresses

T = TypeVar("T")
_HINT: Final = "start one with `torpor up`, or name one with --api or TORPOR_API_URL"


def api_address(named: str, data_dir: Path | None) -> str:
    """The api to talk to: the one named, else the stack of the folder named, else the one of `.torpor`, else the
    default port. Raises `UserError` when no stack runs on a folder that was named: another stack would answer.
    """
    if named:
        return checked_url(named, "--api")
    found = find_addresses(data_dir or DEFAULT_DATA_DIR)
    if found is None and data_dir is not None:
        raise UserError(
            f"no stack runs on {data_dir}; start one with `torpor up --data-dir {data_dir}`"
        )
    return found.api if found else DEFAULT_URL


def checked_url(text: str, flag: str) -> str:
    """The address as a base URL; `host:port` means http. Raises `UsageError`."""
    text = text.strip()
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        is_good = is_good and url.isprintable() and " " not in url and "@" not in url
    except ValueError:
        is_good = False
    if not is_good:
        raise UsageError(f"{flag}: {_shown(text)!r} is no address; write it as http://HOST:PORT")
    return url.rstrip("/")


def _shown(text: str) -> str:
    """Without what may be a password."""
    return "..." + text.rpartition("@")[2] if "@" in text else text


def flags_of(named: str, data_dir: Path | None) -> str:
    """What a hint must carry so that it asks the same api, with a blank before it."""
    if named:
        return f" --api {named}"
    return f" --data-dir {data_dir}" if data_dir is not None else ""


def ask(named: str, data_dir: Path | None, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """What `work` gives with a client of the api. Raises `UserError` with the api's own words."""
    return asyncio.run(asked(api_address(named, data_dir), work))


async def asked(address: str, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """As `ask`, within a loop."""
    try:
        client = AsyncClient(address)
    except ValueError as error:
        raise UsageError(f"TORPOR_API_KEY: {error}") from error
    try:
        async with client as api:
            return await work(api)
    except Unreachable as error:
        raise UserError(f"no Torpor at {address}: {error}; {_HINT}") from error
    except Refused as error:
        key = "; set TORPOR_API_KEY" if error.status == 401 else ""
        raise UserError(f"{error}{key}") from error
