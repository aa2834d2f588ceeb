"""uvicorn's HTTP protocol, ignoring offers to upgrade to anything but WebSocket.

Given to uvicorn by every process that listens (`http=`). Stock Java clients and `curl --http2` offer HTTP/2 with
their first request (`Upgrade: h2c`). RFC 9110, 7.8 lets a server ignore that; httptools treats it as the end of
HTTP on the connection and drops the body.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_OFFER = frozenset({b"upgrade", b"http2-settings", b"connection"})


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    def data_received(self, data: bytes) -> None:
        """Parse; a request that offers another protocol is parsed again without the offer."""
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserError:
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("Invalid HTTP request received.")
                return
            except httptools.HttpParserUpgrade as upgrade:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                if not self._is_ignored_offer():
                    return  # CONNECT: answered already, and what follows is not HTTP
                data = self._head_without_offer() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_headers_complete(self) -> None:
        if not self._is_ignored_offer():
            self.on_request()

    def on_request(self) -> None:
        """The head of a request is complete."""
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_ignored_offer():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_ignored_offer():
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        """A WebSocket is opened by GET (RFC 6455, 4.1); any other call that offers one keeps its body."""
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def _is_ignored_offer(self) -> bool:
        return (
            self.parser.should_upgrade()
            and self.parser.get_method() != b"CONNECT"
            and not self._should_upgrade()
        )

    def _head_without_offer(self) -> bytes:
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self._version())]
        lines += [b"%b: %b" % field for field in self.headers if field[0] not in _OFFER]
        connection = (value for name, value in self.headers if name == b"connection")
        options = (option.strip() for value in connection for option in value.split(b","))
        if kept := [option for option in options if option.lower() not in _OFFER]:
            lines.append(b"connection: " + b", ".join(kept))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _version(self) -> bytes:
        return self.parser.get_http_version().encode("ascii")
