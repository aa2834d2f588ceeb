"""Bodies decoded: whole, in pieces of any size, within bounds, or refused by name."""

import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from eventing.errors import BadRequest
from eventing.process.content_encoding import UnsupportedEncoding, decoder_of

TEXT = b'{"messages": "' + bytes(range(32, 127)) * 3000 + b'"}'


def bare_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "gzip of two members": (
        "GZIP",
        lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    ),
    "deflate": ("deflate", zlib.compress),
    "deflate without zlib's head": ("deflate", bare_deflate),
    "br": ("br", lambda data: brotli.compress(data, quality=1)),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
}
each_coding = pytest.mark.parametrize("coding", CODINGS)


def decoded(encoding: str, body: bytes, step: int) -> bytes:
    decoder = decoder_of(encoding)
    assert decoder is not None
    found = b"".join(
        piece
        for start in range(0, len(body), step)
        for piece in decoder.decode(body[start : start + step])
    )
    decoder.close()
    return found


@each_coding
@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_a_body_is_decoded_however_it_is_cut_on_its_way(coding: str, step: int) -> None:
    encoding, encode = CODINGS[coding]

    assert decoded(encoding, encode(TEXT), step) == TEXT


@each_coding
def test_an_empty_body_is_an_empty_body(coding: str) -> None:
    assert decoded(CODINGS[coding][0], b"", 1) == b""


@each_coding
def test_a_body_that_is_cut_is_refused(coding: str) -> None:
    encoding, encode = CODINGS[coding]

    with pytest.raises(BadRequest):
        decoded(encoding, encode(TEXT)[:-9], 1000)


@each_coding
def test_a_body_that_is_something_else_is_refused(coding: str) -> None:
    with pytest.raises(BadRequest):
        decoded(CODINGS[coding][0], b"\x07" + TEXT[:500], 1000)


@each_coding
def test_a_bomb_is_decoded_in_small_pieces(coding: str) -> None:
    encoding, encode = CODINGS[coding]
    decoder = decoder_of(encoding)
    assert decoder is not None

    pieces = decoder.decode(encode(bytes(64 * 1024 * 1024)))
    assert max(len(next(pieces)) for _ in range(10)) <= 4 * 1024 * 1024


def test_a_coding_that_is_not_decoded_names_those_that_are() -> None:
    with pytest.raises(UnsupportedEncoding) as refusal:
        decoder_of("gzip, br")

    assert refusal.value.headers == {"accept-encoding": "gzip, deflate, br, zstd"}
