"""The one way out of tool calls: a transport of HTTP that checks each address, follows no redirect and counts what it
reads. Handed to the MCP SDK, and used for CloudEvents functions and for data by reference.

Imported at the first call only: `httpx2` comes with the MCP SDK. Must not know protocols of tools.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import cache
from ipaddress import ip_address
from typing import Any, Final

import httpcore2
import httpx2

from eventing.errors import InvalidJob
from eventing.job.tools.sealed import origin_of
from eventing.process.egress import AllowList, check_url, may_dial, refusal

CONNECT_S: Final = 10.0
_REDIRECTS: Final = range(300, 400)


class TargetRefused(httpx2.TransportError):
    """The address must not be dialled; nothing was sent."""


class Redirected(httpx2.TransportError):
    """The server answered with a redirect, which is not followed: credentials are for one origin."""


class TooLong(httpx2.TransportError):
    """More was answered than is read; `kept` is what was."""

    def __init__(self, kept: list[bytes]) -> None:
        super().__init__("the answer is longer than is read")
        self.kept = kept


class Exchange(httpx2.AsyncBaseTransport):
    """The connections of one send of a call, none of which is kept for another send. `allowed` are the addresses inside
    that may be dialled; `headers` go to `origin` alone; at most `limit_bytes` are read.

    `arm` is called before the request that must not be repeated: from then on `began` says whether bytes of it may
    have left, `status` how it was answered, and `is_cut` whether more was answered than is read.
    """

    def __init__(
        self, *, origin: str, allowed: AllowList, headers: Mapping[str, str], limit_bytes: int
    ) -> None:
        self._origin = origin
        self._allowed = allowed
        self._headers = dict(headers)
        self._left_bytes = limit_bytes
        self._armed: dict[str, str] | None = None
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_ssl_context(),
            max_keepalive_connections=1,  # from a list to its call: one process answers both
            network_backend=_CheckedBackend(allowed),
        )
        self.kept: list[bytes] = []
        self.is_cut = False
        self.began = False
        self.status = 0

    def arm(self, headers: Mapping[str, str], limit_bytes: int) -> None:
        """What is posted from now on is the call; `headers` are added to it."""
        self._armed = dict(headers)
        self._left_bytes = limit_bytes
        self.kept = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> httpx2.Response:
        """The answer to one request, which is to be read and closed. Raises as `handle_async_request`."""
        own = {"user-agent": "torpor", **headers}
        timeouts = {"timeout": {"connect": CONNECT_S}}
        request = httpx2.Request("POST", url, headers=own, content=body, extensions=timeouts)
        return await self.handle_async_request(request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request. Raises `TargetRefused`, `Redirected` and what `httpx2` raises."""
        url = str(request.url)
        try:
            check_url(url, self._allowed, "the tool's address")
        except InvalidJob as error:
            raise TargetRefused(error.message) from error
        if origin_of(url) != self._origin:
            raise TargetRefused("the request goes to another origin than the tool's")
        is_call = self._armed is not None and request.method == "POST"
        extra = self._headers | (self._armed or {} if is_call else {})
        request.headers.update({**extra, "accept-encoding": "identity"})
        answer = await self._send(request, is_call=is_call)
        if is_call:
            self.status = answer.status
        if answer.status in _REDIRECTS:
            await answer.aclose()
            raise Redirected("the server redirects, which is not followed")
        return self._response(request, answer)

    async def _send(self, request: httpx2.Request, *, is_call: bool) -> httpcore2.Response:
        async def watch(name: str, _: Mapping[str, Any]) -> None:
            if name.endswith("send_request_headers.started"):
                self.began = True

        made = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions={**request.extensions, **({"trace": watch} if is_call else {})},
        )
        try:
            return await self._pool.handle_async_request(made)
        except httpcore2.TimeoutException as error:
            raise httpx2.TimeoutException(str(error), request=request) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise httpx2.NetworkError(str(error), request=request) from error

    def _response(self, request: httpx2.Request, answer: httpcore2.Response) -> httpx2.Response:
        encoding = {name.lower(): value for name, value in answer.headers}.get(b"content-encoding")
        if encoding not in (None, b"", b"identity"):
            raise httpx2.DecodingError(
                "the server compressed its answer, which it was not asked to"
            )
        stream = _Counted(self, answer)
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=stream, request=request
        )

    def take(self, part: bytes) -> None:
        """Count what was read. Raises `TooLong`."""
        kept = part[: self._left_bytes]
        self.kept.append(kept)
        self._left_bytes -= len(kept)
        if len(kept) < len(part):
            self.is_cut = True
            raise TooLong(self.kept)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Counted(httpx2.AsyncByteStream):
    """The body of an answer."""

    def __init__(self, exchange: Exchange, answer: httpcore2.Response) -> None:
        self._exchange = exchange
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._answer.aiter_stream():
                self._exchange.take(part)
                yield part
        except httpcore2.TimeoutException as error:
            raise httpx2.ReadTimeout(str(error)) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise httpx2.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._answer.aclose()


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves a host once and connects to the first of the addresses that were checked which takes it: there is no
    second look-up with another answer.
    """

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (the interface's)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} does not resolve") from error
        name = host.lower().removesuffix(".")
        addresses = [str(each[4][0]).partition("%")[0] for each in found]
        for address in addresses:
            if not may_dial(name, ip_address(address), self._allowed):
                raise TargetRefused(refusal(ip_address(address)))
        refused: Exception = httpcore2.ConnectError(f"{host} does not resolve")
        for (
            address
        ) in addresses:  # `localhost` of a pod is ::1 as well, where a server may not listen
            try:
                return await self._inner.connect_tcp(
                    address,
                    port,
                    timeout=(timeout or CONNECT_S) / len(addresses),
                    socket_options=socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                refused = error
        raise refused

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


@cache
def _ssl_context() -> ssl.SSLContext:
    return ssl.create_default_context()
