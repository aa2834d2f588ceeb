"""Multipart forms with support for `filename*`.

Called by `api.routes.files`. Starlette's parser keeps 1 MiB of a file in memory and the rest in a temporary file,
which is deleted when reading fails; it does not support `filename*`.
"""

from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Final

from starlette.formparsers import MultiPartParser

_CODED: Final = b"=?"


class NamedFileParser(MultiPartParser):
    """A parser that uses `filename*` (RFC 5987) as the file's name, and decodes encoded words (RFC 2047). RFC 7578
    forbids both; clients send them.
    """

    def on_headers_finished(self) -> None:
        raw = self._current_part.content_disposition
        if raw is not None and (b"filename*" in raw or _CODED in raw):
            self._current_part.content_disposition = _plain(raw, self._charset)
        super().on_headers_finished()


def _plain(raw: bytes, charset: str) -> bytes:
    """The header with one plain `filename`."""
    header = Message()
    header["content-disposition"] = raw.decode("utf-8", "replace")
    params = header.get_params(header="content-disposition") or []
    found = {name: value for name, value in params[1:] if isinstance(value, str)}
    extended = [value for _, value in params[1:] if isinstance(value, tuple)]
    name = collapse_rfc2231_value(extended[0]) if extended else _decoded(found.get("filename", ""))
    line = "".join(letter for letter in name if letter.isprintable())
    quoted = line.replace("\\", "\\\\").replace('"', '\\"')
    field = found.get("name", "")
    return f'form-data; name="{field}"; filename="{quoted}"'.encode(charset, "replace")


def _decoded(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (HeaderParseError, UnicodeError, LookupError):
        return text
