"""Log lines as a machine reads them: what every line carries, and what none does."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog

from eventing.telemetry import log


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a service says on standard error; logs are as they were, afterwards."""
    before = structlog.get_config()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with (tmp_path / "said").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        log.configure("test")
        yield tmp_path / "said"
        monkeypatch.undo()
    structlog.configure(**before)
    root.handlers[:], root.level = handlers, level


def last_line(said: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(said.read_bytes().splitlines()[-1])
    return found


def test_a_line_says_when_where_and_how_grave(said: Path) -> None:
    structlog.get_logger().warning("trouble", action="try", attempt=2)

    line = last_line(said)
    when = datetime.fromisoformat(line.pop("timestamp"))
    assert abs((datetime.now(UTC) - when).total_seconds()) < 60
    assert line == {
        "event": "trouble",
        "action": "try",
        "attempt": 2,
        "service": "test",
        "level": "warning",
    }


def test_lines_within_a_block_carry_its_marks_and_later_ones_do_not(said: Path) -> None:
    logger = structlog.get_logger()

    with log.log_context({"request_id": "order-17"}):
        logger.info("within", action="try")
        within = last_line(said)
    logger.info("after", action="try")

    assert within["request_id"] == "order-17"
    assert "request_id" not in last_line(said)


def test_a_standard_library_log_line_has_our_fields(said: Path) -> None:
    with log.log_context({"request_id": "order-17"}):
        logging.getLogger("somebody").warning("said %s", "so")

    line = last_line(said)
    assert (line["event"], line["logger"], line["level"]) == ("said so", "somebody", "warning")
    assert (line["service"], line["request_id"]) == ("test", "order-17")


def test_a_traceback_shows_no_local_variable(said: Path) -> None:
    prompt = "what nobody may read " * 2
    try:
        raise ValueError(len(prompt))
    except ValueError:
        structlog.get_logger().exception("broke", action="try")

    text = said.read_text()
    assert "ValueError" in text
    assert prompt not in text


def test_a_line_below_the_level_is_not_written() -> None:
    code = (
        "import structlog; from eventing.telemetry import log; log.configure('x', level='ERROR'); "
    )
    code += "structlog.get_logger().info('x'); structlog.get_logger().error('y', action='try')"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert [orjson.loads(line)["event"] for line in done.stderr.splitlines()] == ["y"]
