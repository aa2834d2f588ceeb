"""`torpor top` on a terminal: drawn in place, true when nobody answers, gone without a trace."""

import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.integration.stack import TORPOR

PAGE = b"""# TYPE torpor_replicas_ready gauge
torpor_replicas_ready{model="m"} 0
# TYPE torpor_queue_depth gauge
torpor_queue_depth{model="m",lane="batch"} 7
# TYPE torpor_fallback_jobs_total counter
torpor_fallback_jobs_total{model="m",reason="late"} 3
torpor_fallback_jobs_total{model="m",reason="breaker_open"} 8
# TYPE torpor_withheld_jobs_total counter
torpor_withheld_jobs_total{model="m",by="ground"} 5
# TYPE torpor_job_attempts_total counter
torpor_job_attempts_total{model="m",outcome="completed"} 60
torpor_job_attempts_total{model="m",outcome="rejected"} 6
# TYPE torpor_api_limited_total counter
torpor_api_limited_total{limit="budget_per_month"} 9
# TYPE torpor_provider_breaker_open gauge
torpor_provider_breaker_open{model="m",endpoint="large-4 at a.example"} 1
torpor_provider_breaker_open{model="m",endpoint="small at b.example"} 0
# TYPE torpor_provider_left gauge
torpor_provider_left{model="m",endpoint="large-4 at a.example",of="requests"} 12
# TYPE torpor_queue_events gauge
torpor_queue_events{queue="requests-m"} 5
torpor_queue_events{queue="tool-render"} 4
# TYPE torpor_queue_retrying gauge
torpor_queue_retrying{queue="tool-render"} 1
"""
ROWS, COLUMNS = 30, 44
CLEAR = b"\x1b[2J"
TO_OTHER_SCREEN, BACK = b"\x1b[?1049h", b"\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"


class Terminal:
    """A narrow terminal on which a command runs."""

    def __init__(self, *argv: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            # A test runner may have had Ctrl-C ignored, and children inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execve(argv[0], argv, os.environ | {"TERM": "xterm-256color"})
        ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.written = b""

    def until(self, condition: Callable[[bytes], bool]) -> None:
        """Read until what was written so far will do."""
        deadline = time.monotonic() + 25
        while not condition(self.written):
            assert time.monotonic() < deadline, self.written[-2000:]
            self._read()

    def type(self, text: bytes) -> None:
        os.write(self._fd, text)

    def exit_status(self) -> int:
        while self._read():
            pass
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bool:
        if not select.select([self._fd], [], [], 0.2)[0]:
            return True
        try:
            content = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.written += content
        return bool(content)


@pytest.fixture
def page() -> Iterator[ThreadingHTTPServer]:
    """Somebody who shows metrics."""

    class Shown(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(PAGE)))
            self.end_headers()
            self.wfile.write(PAGE)

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Shown)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_top_redraws_in_place_names_silent_parts_and_restores_the_terminal(
    page: ThreadingHTTPServer,
) -> None:
    at = f"http://127.0.0.1:{page.server_port}"
    terminal = Terminal(TORPOR, "top", "--api", at, "--broker", at, "--every", "0.2")
    frames = re.compile(rb"waiting +- +- +7")
    terminal.until(lambda written: len(frames.findall(written)) >= 4)
    page.shutdown()
    page.server_close()
    terminal.until(lambda written: b"the api has not answered for" in written)

    terminal.type(b"\x03")

    assert terminal.exit_status() == 0
    assert CLEAR not in terminal.written, "it flickers"
    assert [terminal.written.count(code) for code in (TO_OTHER_SCREEN, BACK)] == [1, 1]
    assert terminal.written.rindex(SHOW_CURSOR) > terminal.written.rindex(HIDE_CURSOR)
    assert b"Traceback" not in terminal.written


def test_top_shows_who_answers_and_how_the_providers_are(page: ThreadingHTTPServer) -> None:
    at = f"http://127.0.0.1:{page.server_port}"

    shown = subprocess.run(
        [TORPOR, "top", "--api", at, "--broker", at, "--once", "--every", "0.2"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "120"},
    )

    assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.splitlines()]
    for words in (
        "by a stand-in 11 0",
        "withheld 5 0",
        "asked again 6 0",
        "over a budget 9 0",
        "large-4 at a.example open - 12 -",
        "small at b.example closed - - -",
        "render 4 1 -",
    ):
        assert words.split() in rows


def test_top_without_an_api_fails_in_one_line(page: ThreadingHTTPServer) -> None:
    page.shutdown()
    page.server_close()
    terminal = Terminal(TORPOR, "top", "--api", f"http://127.0.0.1:{page.server_port}")

    assert terminal.exit_status() == 1
    assert b"name a Torpor with --api" in terminal.written
    assert TO_OTHER_SCREEN not in terminal.written
