"""The example tools answer as their callers expect: a function once a key, an MCP server by its own protocol."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

TOOLS = Path(__file__).parents[2] / "examples" / "tools"
DEMO = Path(__file__).parents[2] / "scripts" / "demo_tools.py"


@contextmanager
def listening(*command: str) -> Iterator[str]:
    """The address of an example that listens."""
    with subprocess.Popen([*command], cwd=TOOLS, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def call(address: str, key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The result of one send of a call."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": key,
        "ce-source": "/torpor/tools",
        "ce-type": "dev.torpor.tool.called.v1",
        "content-type": "application/json",
    }
    data = {"name": "refund", "arguments": json.dumps(arguments), "turn": 1}
    answer = httpx.post(address, json=data, headers=headers)
    assert answer.headers["ce-type"] == "dev.torpor.tool.returned.v1"
    result: dict[str, Any] = answer.json()
    return result


def test_a_refund_that_is_sent_twice_under_one_key_is_paid_once(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    order = {"order_id": "A7", "amount": 12.5}
    with listening(sys.executable, "function_refund.py", str(ledger), "0") as address:
        first, again = call(address, "job_1:1.0:0", order), call(address, "job_1:1.0:0", order)
        other = call(address, "job_1:2.0:0", order)
        wrong = call(address, "job_1:3.0:0", {"order_id": "A7"})

    assert first == again != other
    assert wrong["isError"] is True
    with sqlite3.connect(ledger) as database:
        assert database.execute("SELECT count(*) FROM refund").fetchone() == (2,)


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_dice_roll_the_same_for_one_key() -> None:
    with listening("node", "function_dice.mjs", "0") as address:
        rolls = [call(address, key, {"sides": 20}) for key in ("job_1:1.0:0", "job_1:1.0:0")]

    assert rolls[0] == rolls[1]
    assert rolls[0]["content"][0]["text"].startswith("rolled ")


async def test_the_weather_is_listed_and_asked_over_mcp(port: int) -> None:
    with listening(sys.executable, "mcp_weather.py", str(port)) as address:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport) as client:
            client.options(address)  # it says where it listens before it does
        async with Client(address) as client:
            listed = await client.list_tools()
            said = await client.call_tool("forecast", {"city": "Oslo"})

    assert [tool.name for tool in listed.tools] == ["forecast"]
    assert listed.tools[0].annotations.read_only_hint is True
    assert said.content[0].text == "4 °C, rain"


@pytest.mark.timeout(300)
def test_the_demo_calls_both_tools_and_asks_while_the_predictor_is_asleep(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, DEMO, "--engine", "seeded", "--answer", "approve"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"COLUMNS": "300"},
    )

    assert shown.returncode == 0, shown.stderr
    assert 'weather.forecast {"city":"Oslo"} returned -> 4 °C, rain' in shown.stderr
    assert "replicas: 0, while a person is asked" in shown.stderr
    assert shown.stderr.count(":1.0:0', 'A7', 12.5)") == 1
