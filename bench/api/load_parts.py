"""Helper processes of `bench.api.load`: a broker that confirms at once, and a writer of tokens. They share no code
with Torpor, so that they cannot slow down what is measured.
"""

import asyncio
import json
import socket
import sys
import time
from contextlib import suppress
from typing import Final

import uvloop

CONFIRMED = b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"


class Broker(asyncio.Protocol):
    """Confirms each request as soon as its body is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._got = b""

    def data_received(self, data: bytes) -> None:
        self._got += data
        while (head := self._got.find(b"\r\n\r\n")) >= 0:
            lower = self._got[:head].lower()
            length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if len(self._got) < head + 4 + length:
                return
            self._got = self._got[head + 4 + length :]
            self._transport.write(CONFIRMED)  # type: ignore[attr-defined]


async def broker(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Broker, "127.0.0.1", port)
    await server.serve_forever()


TICKS_PER_SECOND: Final = 200


def writer(port: int, per_second: float, seconds: float) -> None:
    """Tokens for all jobs, evenly spread over time, each with the time of its writing.

    Commands are built by hand and replies discarded: with a client library, writing would cost more than all of the
    api's work for a token. Prints how late its own ticks were.
    """
    job_ids = json.loads(sys.stdin.readline())
    names = [f"torpor:{{{job_id}}}:tokens" for job_id in job_ids]
    heads = [HEAD + f"${len(name)}\r\n{name}\r\n{BEFORE}".encode() for name in names]
    sock = socket.create_connection(("127.0.0.1", port))
    step = len(heads) * per_second / TICKS_PER_SECOND
    started_s = time.perf_counter()
    lateness_ms = []
    written = 0
    for tick in range(int(seconds * TICKS_PER_SECOND)):
        wait_s = started_s + tick / TICKS_PER_SECOND - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        lateness_ms.append(max(0.0, -wait_s * 1000))
        upto = int((tick + 1) * step)
        stamp = b'[{"index":0,"delta":{"content":"%d"}}]' % time.time_ns()
        tail = AFTER + b"$%d\r\n%b\r\n" % (len(stamp), stamp)
        numbers = range(written, upto)
        sock.sendall(
            b"".join(heads[n % len(heads)] + _word(n // len(heads)) + tail for n in numbers)
        )
        written = upto
        with suppress(BlockingIOError):
            while len(sock.recv(1 << 20, socket.MSG_DONTWAIT)) == 1 << 20:
                continue
    late = sorted(lateness_ms)
    print(json.dumps({"written": written, "late_p99_ms": round(late[int(len(late) * 0.99)], 1)}))


HEAD: Final = b"*13\r\n$4\r\nXADD\r\n"


def _words(*words: str) -> bytes:
    return "".join(f"${len(word)}\r\n{word}\r\n" for word in words).encode()


def _word(number: int) -> bytes:
    digits = b"%d" % number
    return b"$%d\r\n%b\r\n" % (len(digits), digits)


BEFORE: Final = _words("*", "kind", "tokens", "attempt", "1", "index").decode()
AFTER: Final = _words("ids", "7", "delta")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["broker", port]:
            uvloop.run(broker(int(port)))
        case ["writer", port, per_second, seconds]:
            writer(int(port), float(per_second), float(seconds))
