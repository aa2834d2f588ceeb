"""TLS of connections to the store, and what to say when it fails.

Called by `eventing.redis.connection` and `eventing.redis.sentinel`.
"""

import os
import ssl
from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio.connection import Connection, SSLConnection

from eventing.redis.replica import LeavesReplica

_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_WRONG_NAME: Final = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""
_contexts: Final[dict[str, tuple[list[float], ssl.SSLContext]]] = {}
"""By options, with the times of their files: at most as many as there are addresses of stores in a process."""


def _context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """One context for all connections with these options, made anew when a file changed: a certificate is renewed
    while the process runs. redis-py makes one for each connection, which costs 22 ms of CPU, and after a failover all
    connections are opened at once.
    """
    stamps = [os.stat(path).st_mtime for name in _FILES if (path := options.get(name))]
    found = _contexts.get(repr(options))
    if found is None or found[0] != stamps:
        found = _contexts[repr(options)] = stamps, SSLConnection(**options).ssl_context.get()
    return found[1]


class TlsConnection(LeavesReplica, SSLConnection):  # type: ignore[misc]  # redis is untyped to us
    """redis-py's connection with TLS, with a context that it shares."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._tls = {name: options[name] for name in sorted(options) if name.startswith("ssl_")}

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**Connection._connection_arguments(self), "ssl": _context(self._tls)}


def tls_failure(error: BaseException) -> str | None:
    """What is wrong with TLS, and which option of the address it is about; None for another error. redis-py raises its
    own error while it handles OpenSSL's.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    match cause:
        case None:
            return None
        case ssl.SSLCertVerificationError():
            is_name = cause.verify_code in _WRONG_NAME
            about = "name it as its certificate does" if is_name else "ssl_ca_certs has who signed"
            return f"certificate is refused, {cause.verify_message.rstrip('.')}: {about}"
        case _:
            reason = (cause.reason or "no reason given").replace("_", " ").lower()
            return (
                f"TLS failed, {reason}: rediss is for a port with TLS, ssl_certfile and ssl_keyfile are for one that "
                "asks for a certificate"
            )
