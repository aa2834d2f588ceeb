"""Our MCP client by the protocol's own conformance suite (npm, Node 22), and by what the suite found in it.

Skipped by name where Node, npm or the network is not there; `make test-mcp` brings Node along.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from redis.asyncio import Redis

from tests.contract.test_tool_calls import BOUND, config
from tests.contract.tool_process import COMPLETE, TOOL, RawMcp, listening, tool_process

pytestmark = pytest.mark.timeout(300)
ROOT: Final = Path(__file__).parents[2]
STABLE: Final = "@modelcontextprotocol/conformance@0.1.16"
NEXT: Final = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
"""The first that knows the specification of 2026-07-28."""
COMMAND: Final = f"{sys.executable} -m tests.contract.mcp_conformance_client"
NODE: Final = 22
SCENARIOS: Final = [
    *((STABLE, name, "2025-11-25") for name in ("initialize", "tools_call", "sse-retry")),
    (NEXT, "json-schema-2020-12-preservation", "2025-11-25"),
    *(
        (NEXT, name, "2026-07-28")
        for name in (
            "tools_call",
            "request-metadata",
            "sep-2322-client-request-state",
            "http-standard-headers",
            "http-custom-headers",
            "http-invalid-tool-headers",
            "json-schema-ref-no-deref",
            "json-schema-2020-12-preservation",
        )
    ),
]


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The programs of both versions of the suite."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.strip("v\n").partition(".")[0]) < NODE:
        pytest.skip(f"the suite needs Node {NODE}, and this is {version.strip()}")
    folder = tmp_path_factory.mktemp("suites")
    packages = [f"stable@npm:{STABLE}", f"next@npm:{NEXT}"]
    flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run(
        [npm, "install", "--prefix", str(folder), *flags, *packages],
        capture_output=True,
        timeout=200,
        check=False,
    )
    if done.returncode:
        pytest.skip("npm could not fetch the suite (no network)")
    named = {STABLE: "stable", NEXT: "next"}
    return {key: folder / "node_modules" / name / "dist/index.js" for key, name in named.items()}


def said(
    program: Path, scenario: str, folder: Path, *more: str
) -> tuple[int, list[dict[str, str]]]:
    """How the suite ended, and the checks that it made."""
    words = ["--command", COMMAND, "--scenario", scenario, "--output-dir", str(folder), *more]
    done = subprocess.run(
        ["node", str(program), "client", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    checks = [json.loads(path.read_text()) for path in folder.rglob("checks.json")]
    assert checks, done.stdout + done.stderr
    return done.returncode, [each for part in checks for each in part]


@pytest.mark.parametrize(("suite", "scenario", "version"), SCENARIOS)
def test_the_suite_passes(
    suites: dict[str, Path], tmp_path: Path, suite: str, scenario: str, version: str
) -> None:
    code, checks = said(suites[suite], scenario, tmp_path, "--spec-version", version)
    judged = [each for each in checks if each["status"] != "INFO"]
    wrong = [each for each in judged if each["status"] in ("FAILURE", "WARNING")]
    assert (code, wrong) == (0, [])
    assert any(each["status"] == "SUCCESS" for each in judged)


def test_a_session_server_that_asks_in_the_middle_of_a_call_is_told_that_the_user_cancelled(
    suites: dict[str, Path], tmp_path: Path
) -> None:
    """The one scenario outside of authorisation that is not passed: nobody fills a form in while a call is open."""
    code, checks = said(suites[STABLE], "elicitation-sep1034-client-defaults", tmp_path)
    said_by_us = [each["errorMessage"] for each in checks if "errorMessage" in each]
    assert (code, said_by_us) == (1, ["Expected action 'accept', got 'cancel'"])


async def test_arguments_that_are_headers_as_well_are_sent_while_the_list_is_kept(
    redis: Redis, tmp_path: Path
) -> None:
    region = {"type": "string", "x-mcp-header": "Region"}
    raw = RawMcp(tools=[{**TOOL, "inputSchema": {"type": "object", "properties": {"r": region}}}])
    raw.methods["tools/list"] = lambda _: {**COMPLETE, "ttlMs": 60_000, "tools": raw.tools}
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url)) as process,
    ):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {"r": "oslo"}))
        assert await process.deliver("tool-a") == [200]
    methods = [method for method, _, _ in raw.seen]
    assert methods.count("tools/list") == 1
    assert raw.seen[methods.index("tools/call")][2]["mcp-param-region"] == "oslo"


async def test_no_two_requests_of_two_sessions_have_the_same_id(
    redis: Redis, tmp_path: Path
) -> None:
    raw = RawMcp()
    async with (
        listening(raw.app()) as url,
        tool_process(redis, tmp_path, config(url)) as process,
    ):
        await process.begin({}, {**BOUND})
        await process.generate(("a__do", {"n": 1}), ("a__do", {"n": 2}))
        assert await process.deliver("tool-a") == [200, 200]
    asked = [each for each in raw.ids if each is not None]
    assert len(raw.called()) == 2
    assert len(set(asked)) == len(asked)
