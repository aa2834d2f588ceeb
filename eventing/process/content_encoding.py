"""Decodes bodies in small steps, because 40 bytes can decode to a gibibyte.

Called by `eventing.process.body`. Pure.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import brotli  # type: ignore[import-untyped]
import zstandard

from eventing.errors import BadRequest

ACCEPTED: Final = "gzip, deflate, br, zstd"
_STEP_BYTES: Final = 64 * 1024
_ZSTD_STEP_BYTES: Final = 64
"""zstd's decoder has no output limit: this input decodes to at most 16 blocks of 128 KiB each."""
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
"""The window size that RFC 9659 requires of HTTP decoders."""


class UnsupportedEncoding(BadRequest):
    """A content coding that is not supported (RFC 9110, 15.5.16)."""

    status = 415
    code = "unsupported_encoding"

    def __init__(self, message: str) -> None:
        super().__init__(message, "content-encoding")
        self.headers = {"accept-encoding": ACCEPTED}


class Decoder(Protocol):
    """Decodes one body. Both methods raise `BadRequest`."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """The decoded output of `data`, in pieces of a bounded size."""

    def close(self) -> None:
        """Called at the end of the body; raises when the encoded data is incomplete."""


def decoder_of(encoding: str) -> Decoder | None:
    """The decoder for a Content-Encoding header; None for an unencoded body. Raises `UnsupportedEncoding`."""
    match encoding.strip().lower():
        case "" | "identity":
            return None
        case "gzip" | "x-gzip":
            return _Zlib(lambda _: zlib.MAX_WBITS | 16)
        case "deflate":
            return _Zlib(_wbits_of_deflate)
        case "br":
            return _Brotli()
        case "zstd":
            return _Zstd()
        case other:
            raise UnsupportedEncoding(f"content-encoding {other!r:.40} is not decoded here")


def _wbits_of_deflate(start: bytes) -> int:
    """RFC 9110 means deflate with zlib's header; many senders send it without."""
    is_zlib = len(start) > 1 and start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


class _Zlib:
    """gzip, with one member or several, and deflate."""

    def __init__(self, wbits: Callable[[bytes], int]) -> None:
        self._wbits = wbits
        self._start = b""
        self._stream: zlib._Decompress | None = None

    def decode(self, data: bytes) -> Iterator[bytes]:
        data, self._start = self._start + data, b""
        while data:
            if self._stream is None and len(data) < 2:
                self._start = data
                return
            if self._stream is None or self._stream.eof:
                self._stream = zlib.decompressobj(self._wbits(data))
            try:
                yield self._stream.decompress(data, _STEP_BYTES)
            except zlib.error as error:
                raise _broken() from error
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail

    def close(self) -> None:
        if self._start or (self._stream is not None and not self._stream.eof):
            raise _cut()


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._has_begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        self._has_begun = True
        try:
            piece = self._stream.process(data, output_buffer_limit=_STEP_BYTES)
            while piece:
                yield piece
                piece = self._stream.process(b"", output_buffer_limit=_STEP_BYTES)
        except brotli.error as error:
            raise _broken() from error

    def close(self) -> None:
        if self._has_begun and not self._stream.is_finished():
            raise _cut()


class _Zstd:
    def __init__(self) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._stream = decompressor.decompressobj()
        self._has_begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        self._has_begun = True
        for start in range(0, len(data), _ZSTD_STEP_BYTES):
            if self._stream.eof:
                raise _broken()
            try:
                yield self._stream.decompress(data[start : start + _ZSTD_STEP_BYTES])
            except zstandard.ZstdError as error:
                raise _broken() from error

    def close(self) -> None:
        if self._has_begun and not self._stream.eof:
            raise _cut()


def _broken() -> BadRequest:
    return BadRequest("the body is not what content-encoding says", "content-encoding")


def _cut() -> BadRequest:
    return BadRequest("the body ended before what content-encoding says did", "body")
