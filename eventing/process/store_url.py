"""Reads `TORPOR_REDIS_URL`: one server, or the sentinels that know which server is the primary.

Called by the settings, which refuse a wrong value at start, and by `eventing.redis.connection`, which connects. Options
behind a `?` are redis-py's (`ssl_ca_certs` for instance). Messages never contain the value, which may hold passwords.
"""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import SSLConnection
from redis.exceptions import RedisError

ENCODE: Final = "a password in it must be percent-encoded"
_FORM: Final = "redis://[USER:PASSWORD@]HOST[:PORT][/DB]"
_SENTINEL_FORM: Final = "redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT]/SERVICE[/DB]"
_FILES: Final = (
    "a file of its ssl_ca_certs, ssl_certfile or ssl_keyfile cannot be read, or holds no such PEM"
)
_SENTINEL_PORT: Final = 26379
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]+")
"""What Sentinel accepts as the name of a monitored primary."""


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """Where the store is. With `sentinels`, `url` has the options of the connection to the server that they name, and
    its host means nothing.
    """

    url: str = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)

    @property
    def is_tls(self) -> bool:
        return self.url.startswith("rediss://")


def parse_store_url(text: str) -> StoreUrl:
    """Raises `ValueError`, which says what form is expected."""
    found = text.strip()
    scheme, _, rest = found.partition("://")
    if scheme not in ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"):
        raise ValueError(f"write it as {_FORM} or {_SENTINEL_FORM}")
    if not found.isprintable() or " " in found:
        raise ValueError(f"it holds a blank or a line break; {ENCODE}")
    if scheme.endswith("+sentinel"):
        return _with_sentinels(scheme.removesuffix("+sentinel"), rest)
    _check_server(found, _FORM)
    return StoreUrl(found)


def _with_sentinels(scheme: str, rest: str) -> StoreUrl:
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    login, at, hosts = authority.rpartition("@")
    service, _, db = path.partition("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    username = options.pop("sentinel_username", "")
    password = options.pop("sentinel_password", "")
    if username and not password:
        raise ValueError("it has a sentinel_username without a sentinel_password")
    if _SERVICE.fullmatch(service) is None:
        raise ValueError(f"it names no service that the sentinels watch: write {_SENTINEL_FORM}")
    sentinels = tuple(_address(each) for each in hosts.split(","))
    if len(set(sentinels)) < len(sentinels):
        raise ValueError("it names the same sentinel twice")
    url = f"{scheme}://{login}{at}sentinel/{db}" + (f"?{urlencode(options)}" if options else "")
    _check_server(url, _SENTINEL_FORM)
    return StoreUrl(url, sentinels, service, username, password)


def _address(text: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"a sentinel's port is no number: write {_SENTINEL_FORM}") from error
    if not host or parts.username or parts.query or parts.fragment:
        raise ValueError(f"a sentinel has no host: write {_SENTINEL_FORM}; {ENCODE}")
    return unquote(host), _SENTINEL_PORT if port is None else port


def _check_server(url: str, form: str) -> None:
    try:
        parts = urlsplit(url)
        is_unix = parts.scheme == "unix"
        is_whole = is_unix or bool(parts.hostname) or not parts.netloc
        is_plain = is_whole and re.fullmatch(r"|/\d*", parts.path) is not None
        if parts.fragment or _has_stray(url) or not (is_plain or is_unix):
            raise ValueError(f"write it as {form}; {ENCODE}")
        made = ConnectionPool.from_url(url).make_connection()
    except (ValueError, TypeError, RedisError) as error:
        raise ValueError(f"write it as {form}; {ENCODE}") from error
    try:
        if isinstance(made, SSLConnection):
            made.ssl_context.get()
    except OSError as error:  # OpenSSL's are among them
        raise ValueError(_FILES) from error


def _has_stray(url: str) -> bool:
    """A percent sign that encodes nothing."""
    return re.search(r"%(?![0-9A-Fa-f]{2})", url) is not None
