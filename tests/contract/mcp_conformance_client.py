"""The command that MCP's conformance suite starts: our client against the suite's server, with what each scenario asks.

`python -m tests.contract.mcp_conformance_client URL`. Lists the tools and calls them as a job does: each with its
pinned digest, a question to the user answered with «accept». The scenario's own arguments come in the environment.
"""

import asyncio
import os
import sys
from typing import Any, Final

import orjson

from eventing.clock import SystemClock
from eventing.job.tools.sealed import origin_of
from eventing.job.tools.tool_list import definition_digest
from eventing.process.egress import AllowList
from steps.tools.client.answer import Answer, Asks, Outgoing, Target
from steps.tools.client.mcp_client import LIST_BYTES, McpClient

TIMEOUT_S: Final = 20.0
ARGUMENTS: Final[dict[str, dict[str, Any]]] = {"add_numbers": {"a": 2, "b": 3}}
ANSWER: Final = {"action": "accept", "content": {"confirmed": True}}


async def main(url: str) -> None:
    """List, then call each tool of the scenario."""
    allowed = AllowList.parse(["localhost"])
    target = Target(label="suite", url=url, origin=origin_of(url), allowed=allowed)
    client = McpClient(SystemClock())
    listed = await client.list_tools(target, TIMEOUT_S)
    tools = {str(tool["name"]): tool for tool in listed.tools}
    context = orjson.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    given = [(each["name"], each["arguments"]) for each in context.get("toolCalls", ())]
    if "json_schema_echo" in tools:
        given = [("json_schema_echo", {"schema": tools["json_schema_2020_12_tool"]["inputSchema"]})]
    for name, arguments in given or [(name, ARGUMENTS.get(name, {})) for name in tools]:
        call = Outgoing(
            tool=name,
            arguments=arguments,
            key=f"conformance:{name}",
            timeout_s=TIMEOUT_S,
            digest=definition_digest(tools[name]),
        )
        print(name, await _answered(client, target, call))


async def _answered(client: McpClient, target: Target, call: Outgoing) -> Answer:
    """The answer to the call, and to the same call with what the server asked its user for."""
    said = await client.call(target, call, LIST_BYTES)
    if not isinstance(said, Asks):
        return said
    answers = dict.fromkeys(said.requests, ANSWER)
    again = Outgoing(
        tool=call.tool,
        arguments=call.arguments,
        key=call.key,
        timeout_s=call.timeout_s,
        digest=call.digest,
        answers=answers,
        state=said.state,
    )
    return await client.call(target, again, LIST_BYTES)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
